"""What every entry of the package asks of its token ids and lengths."""

import operator

import torch
from torch import Tensor


def check_tokens(name: str, tokens: Tensor, size: int, *, values: bool) -> None:
    """Check a padded batch of token ids.

    Args:
        name: what the message calls it.
        tokens: integer ids, two dimensions.
        size: number of symbols.
        values: also read the ids; on an accelerator this waits for it.

    Raises:
        TypeError: not a tensor of integers.
        ValueError: not two dimensions, or nothing in it.
        IndexError: an id outside 0 ... size - 1.
    """
    if not isinstance(tokens, Tensor):
        raise TypeError(f"{name}: expected a Tensor of integer ids, got {type(tokens).__name__}")
    if tokens.is_floating_point() or tokens.is_complex() or tokens.dtype == torch.bool:
        raise TypeError(f"{name}: expected integer ids, got {tokens.dtype}")
    if tokens.dim() != 2:
        raise ValueError(f"{name}: expected 2 dimensions, got shape {list(tokens.shape)}")
    if tokens.numel() == 0:
        raise ValueError(f"{name}: empty, shape {list(tokens.shape)}")
    if not values or torch.compiler.is_compiling():
        return
    smallest, largest = (int(value) for value in torch.aminmax(tokens))
    if smallest < 0 or largest >= size:
        culprit = smallest if smallest < 0 else largest
        raise IndexError(f"{name}: id {culprit} is outside the vocabulary, 0 to {size - 1}")


def check_count(name: str, count: int) -> None:
    """Check a number of something.

    Args:
        name: what the message calls it.
        count: an integer from 1 on.

    Raises:
        TypeError: not an integer.
        ValueError: below 1.
    """
    try:
        operator.index(count)
    except TypeError:
        raise TypeError(f"{name}: expected an integer, got {count!r}") from None
    if count < 1:
        raise ValueError(f"{name}: expected at least 1, got {count}")


def check_lengths(lengths: Tensor, steps: int, rows: int) -> None:
    """Check the lengths of a padded batch; on an accelerator their values are not read.

    Args:
        lengths: steps of each row, [N].
        steps: longest length allowed.
        rows: N.

    Raises:
        TypeError: not a tensor of integers.
        ValueError: wrong shape, or a length outside 1 ... steps; the message names the row.
    """
    if not isinstance(lengths, Tensor):
        raise TypeError(f"lengths: expected a Tensor of integers, got {type(lengths).__name__}")
    if lengths.is_floating_point() or lengths.dtype == torch.bool:
        raise TypeError(f"lengths: expected integers, got {lengths.dtype}")
    if tuple(lengths.shape) != (rows,):
        raise ValueError(f"lengths: expected shape [{rows}], got {list(lengths.shape)}")
    if lengths.device.type != "cpu" or torch.compiler.is_compiling():
        return
    wrong = ((lengths < 1) | (lengths > steps)).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(f"lengths: row {row} has {int(lengths[row])} steps, expected 1 to {steps}")

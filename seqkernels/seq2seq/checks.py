"""What every entry of the package asks of its arguments: numbers, names, token ids, lengths."""

import operator
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

LARGEST = 2**63 - 1  # what torch takes
_IDS = (torch.int64, torch.int32)


def check_integer(name: str, value: Any, least: int = 1, most: int = LARGEST) -> int:
    """Check a number of something, or a place among so many.

    Args:
        name: what the message calls it.
        value: an integer; True and False are none.
        least: smallest value allowed.
        most: largest value allowed.

    Returns:
        The value as an int.

    Raises:
        TypeError: not an integer.
        ValueError: out of range.
    """
    try:
        number = operator.index(value)
    except TypeError:
        number = None
    if number is None or isinstance(value, bool):
        raise TypeError(f"{name}: expected an integer, got {value!r}")
    if not least <= number <= most:
        expected = f"at least {least}" if most == LARGEST else f"{least} to {most}"
        raise ValueError(f"{name}: expected {expected}, got {number}")
    return number


def check_symbol(name: str, symbol: Any, size: int) -> int | None:
    """Check the id of a special symbol among `size` symbols; None stands for no such symbol.

    Raises:
        TypeError: not an integer.
        ValueError: outside 0 ... size - 1.
    """
    return None if symbol is None else check_integer(name, symbol, 0, size - 1)


def check_reads_own(written: int, read: int) -> None:
    """Raise a ValueError where a decoder that reads its own symbols scores more than it reads."""
    if written > read:
        raise ValueError(
            f"the decoder cannot read what it writes: output_size={written}, input_size={read}"
        )


def check_probability(name: str, value: Any) -> Any:
    """Check a number from 0 to 1, and return it.

    Raises:
        TypeError: not a number; True and False are none.
        ValueError: out of range, or not a number by IEEE 754.
    """
    try:
        inside = bool(0.0 <= value <= 1.0)
    except (TypeError, ValueError, RuntimeError):
        inside = None
    if inside is None or isinstance(value, bool):
        raise TypeError(f"{name}: expected a number, got {value!r}")
    if not inside:
        raise ValueError(f"{name}: expected 0 to 1, got {value}")
    return value


def check_flag(name: str, value: Any) -> bool:
    """Raise a TypeError where the value is neither true nor false; return which."""
    if isinstance(value, Tensor) or value not in (True, False):
        raise TypeError(f"{name}: expected True or False, got {value!r}")
    return bool(value)


def check_choice(name: str, value: Any, choices: Iterable[str]) -> None:
    """Raise a ValueError where the value is none of the names."""
    if not isinstance(value, str) or value not in choices:
        raise ValueError(f"unknown {name} {value!r}; expected one of {', '.join(choices)}")


def check_type(name: str, value: Any, kind: type) -> None:
    """Raise a TypeError where the value is not of that class, nor such a module compiled."""
    if not isinstance(getattr(value, "_orig_mod", value), kind):
        raise TypeError(f"{name}: expected {kind.__name__}, got {type(value).__name__}")


def check_states(name: str, states: Any, count: int, layers: int, width: int) -> None:
    """Check the states of a stack.

    Args:
        name: what the message calls them.
        states: (h,) or (h, c), each [layers, N, width].
        count: how many there must be.
        layers: of the stack, directions included.
        width: of a state.

    Raises:
        TypeError: not a tuple or list of tensors.
        ValueError: another number, or another shape.
    """
    if not isinstance(states, (tuple, list)) or not all(isinstance(s, Tensor) for s in states):
        raise TypeError(f"{name}: expected a tuple of Tensors, got {type(states).__name__}")
    if len(states) != count:
        raise ValueError(f"{name}: expected {count} of them, got {len(states)}")
    for state in states:
        if state.dim() != 3 or (state.shape[0], state.shape[2]) != (layers, width):
            raise ValueError(f"{name}: expected [{layers}, N, {width}], got {list(state.shape)}")


def check_tokens(name: str, tokens: Any, size: int, *, values: bool | None = None) -> None:
    """Check a padded batch of token ids.

    Args:
        name: what the message calls it.
        tokens: integer ids, two dimensions.
        size: number of symbols.
        values: also read the ids; by default on the CPU alone, for an accelerator is waited for.

    Raises:
        TypeError: not a tensor of int64 or int32.
        ValueError: not two dimensions, or nothing in it.
        IndexError: an id outside 0 ... size - 1.
    """
    if not isinstance(tokens, Tensor):
        raise TypeError(f"{name}: expected a Tensor of integer ids, got {type(tokens).__name__}")
    if tokens.dtype not in _IDS:
        raise TypeError(f"{name}: expected integer ids, int64 or int32, got {tokens.dtype}")
    if tokens.dim() != 2:
        raise ValueError(f"{name}: expected 2 dimensions, got shape {list(tokens.shape)}")
    if tokens.numel() == 0:
        raise ValueError(f"{name}: empty, shape {list(tokens.shape)}")
    if values is None:
        values = tokens.is_cpu
    if not values or torch.compiler.is_compiling():
        return
    smallest, largest = (int(value) for value in torch.aminmax(tokens))
    if smallest < 0 or largest >= size:
        culprit = smallest if smallest < 0 else largest
        raise IndexError(f"{name}: id {culprit} is outside the vocabulary, 0 to {size - 1}")


def check_lengths(lengths: Tensor, steps: int, rows: int) -> None:
    """Check the lengths of a padded batch; on an accelerator their values are not read.

    Args:
        lengths: steps of each row, [N].
        steps: longest length allowed.
        rows: N.

    Raises:
        TypeError: not a tensor of int64 or int32.
        ValueError: wrong shape, or a length outside 1 ... steps; the message names the row.
    """
    if not isinstance(lengths, Tensor):
        raise TypeError(f"lengths: expected a Tensor of integers, got {type(lengths).__name__}")
    if lengths.dtype not in _IDS:
        raise TypeError(f"lengths: expected integers, int64 or int32, got {lengths.dtype}")
    if tuple(lengths.shape) != (rows,):
        raise ValueError(f"lengths: expected shape [{rows}], got {list(lengths.shape)}")
    if lengths.device.type != "cpu" or torch.compiler.is_compiling():
        return
    wrong = ((lengths < 1) | (lengths > steps)).nonzero()
    if len(wrong):
        row = int(wrong[0])
        raise ValueError(f"lengths: row {row} has {int(lengths[row])} steps, expected 1 to {steps}")

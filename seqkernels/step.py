"""One cell step, on checked arguments, and the short ways that a step on a CPU takes.

The cells in `seqkernels.nn` and layers called for one step run here. Shapes are checked by the
caller that faces the user; the ops check them again.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from . import arguments, dispatch, modes, ops, reference
from .cells import CELLS, CellSpec
from .ops.step import Step, infer

_State = tuple[Tensor, ...]

# Two products and a function of one value: no kernel does less than torch's own op.
_TORCH_CELLS = {"rnn_tanh": torch.rnn_tanh_cell, "rnn_relu": torch.rnn_relu_cell}


def is_plain(x, weight_ih, weight_hh, bias_ih, bias_hh, *state) -> bool:
    """Whether a cell step is an eager one on the CPU that nothing looks at or transforms.

    The dispatcher would take the native kernels; asking it takes as long as the kernel does. For
    the same reason the questions are written out.
    """
    return (
        not torch.compiler.is_compiling()
        and dispatch.takes_native(x)
        and weight_ih.is_cpu
        and weight_hh.is_cpu
        and (bias_ih is None or bias_ih.is_cpu)
        and (bias_hh is None or bias_hh.is_cpu)
        and state[0].is_cpu
        and state[-1].is_cpu
        and not torch._C._is_any_autocast_enabled()
        and not torch._C._is_tracing()
        and torch._C._len_torch_dispatch_stack() == 0
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch.autograd.forward_ad._current_level < 0
    )


def plain_cell(cell, x, state, weight_ih, weight_hh, bias_ih, bias_hh):
    """One step on the shortest way: the new state. The ops check the other sizes."""
    rows = weight_hh.shape[:1]  # a bias of one element would be broadcast
    if (
        bias_ih is not None
        and bias_ih.shape != rows
        or bias_hh is not None
        and bias_hh.shape != rows
    ):
        found = [None if b is None else list(b.shape) for b in (bias_ih, bias_hh)]
        raise RuntimeError(f"Expected bias_ih and bias_hh of size {list(rows)}, got {found}")
    if cell in _TORCH_CELLS and x.dim() == state[0].dim() == 2:
        return (_TORCH_CELLS[cell](x, state[0], weight_ih, weight_hh, bias_ih, bias_hh),)
    differentiable = torch.is_grad_enabled() and (
        weight_hh.requires_grad
        or weight_ih.requires_grad
        or x.requires_grad
        or modes.needs_grad((bias_ih, bias_hh, *state))
    )
    if differentiable:
        new_state = Step.apply(cell, x, weight_ih, weight_hh, bias_ih, bias_hh, *state)
        return new_state if len(state) == 2 else (new_state,)
    return infer(cell, x, state, weight_ih, weight_hh, bias_ih, bias_hh)


def _torch_takes(x, h, weight_ih, weight_hh, bias_ih, bias_hh) -> bool:
    """Whether torch's op takes a step of a plain RNN.

    It checks the sizes of matrices, but no devices: its product reads a meta tensor as noise.
    """
    gates = weight_hh.shape[:1]
    return (
        not torch.compiler.is_compiling()
        and dispatch.takes_native(x)
        and x.dim() == h.dim() == 2
        and h.is_cpu
        and weight_ih.is_cpu
        and weight_hh.is_cpu
        # Its sum in place fails under vmap where only the weights are batched.
        and torch._C._functorch.peek_interpreter_stack() is None
        and (bias_ih is None or bias_ih.shape == gates)
        and (bias_hh is None or bias_hh.shape == gates)
    )


def cell(
    cell: str,
    x: Tensor,
    state: _State,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    *,
    backend: str | None = None,
) -> _State:
    """Run one step of a cell.

    Args:
        cell: a key of `seqkernels.cells.CELLS`.
        x: input, [N, I].
        state: (h,) or (h, c), each [N, H].
        weight_ih: input weights, [G*H, I].
        weight_hh: recurrent weights, [G*H, H].
        bias_ih: bias added to the input product, [G*H].
        bias_hh: bias added to the recurrent product, [G*H].
        backend: a name from `dispatch.backends()`; by default the first that can run.

    Returns:
        The new state, each [N, H].

    Raises:
        RuntimeError: the named backend cannot run this call; the message says why.
    """
    spec: CellSpec = CELLS[cell]
    if backend is None and cell in _TORCH_CELLS:
        tensors = (x, state[0], weight_ih, weight_hh, bias_ih, bias_hh)
        if _torch_takes(*tensors):
            return (_TORCH_CELLS[cell](*tensors),)
    ordinary = backend is None and spec.pointwise
    if ordinary and is_plain(x, weight_ih, weight_hh, bias_ih, bias_hh, *state):
        return plain_cell(cell, x, state, weight_ih, weight_hh, bias_ih, bias_hh)
    given, wide = state, modes.wide_results(cell, state[-1], True)
    # fmt: off
    x, weight_ih, weight_hh, bias_ih, bias_hh, *state = tensors = modes.autocast(
        x.device.type, (x, weight_ih, weight_hh, bias_ih, bias_hh, *state)
    )
    # fmt: on
    arguments.check_part(cell, x, x.shape[-1], state, weight_ih, weight_hh, bias_ih, bias_hh)
    if x.dim() != 2 or x.shape[0] != state[0].shape[0]:
        raise RuntimeError(f"Expected input of size [{state[0].shape[0]}, I], got {list(x.shape)}")
    training = modes.needs_grad(tensors)
    call = dispatch.Call(
        cell=cell,
        device=x.device,
        dtype=x.dtype,
        steps=1,
        batch=x.shape[0],
        hidden_size=weight_hh.shape[1],
        input_size=x.shape[-1],
        training=training,
        transformed=modes.transformed(tensors),
        bias=bias_ih is not None,
    )
    chosen = dispatch.choose(call, backend)
    gates_x = F.linear(x, weight_ih, bias_ih)
    if wide is not None:  # Products in autocast's dtype, states as they come: torch.nn's way.
        gates_h = F.linear(state[0], weight_hh, bias_hh).to(wide)
        gates_x, state = gates_x.to(wide), [s.to(wide) for s in given]
    if chosen.suffix is None or not spec.pointwise:
        return reference.step(cell, gates_x, weight_hh, bias_hh, tuple(state))
    h, c = state if spec.states > 1 else (state[0], None)
    if wide is None:
        gates_h = F.linear(h, weight_hh, bias_hh)
    suffix = "_triton" if chosen.name == "triton" else ""
    new_h, new_c, _ = ops.get(f"{cell}_cell{suffix}")(gates_x, gates_h, h, c, training)
    return (new_h,) if spec.states == 1 else (new_h, new_c)

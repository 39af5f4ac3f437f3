"""One layer in one direction, and one cell step, on checked arguments.

The layers in `seqkernels.nn` are loops over these two functions. Shapes are checked by the caller
that faces the user; the ops check them again.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from . import dispatch, ops, reference
from .cells import CELLS, CellSpec
from .ops.gemm import linear
from .ops.joined import EAGER_JOINED, Inputs, Weights, joined_forward
from .ops.layer import EAGER
from .ops.sequence import reference_sequence
from .ops.step import FEW_ROWS, Step, infer
from .ops.weights import fold_bias

_State = tuple[Tensor, ...]


def _transformed(tensors: tuple[Tensor | None, ...]) -> bool:
    """Whether a tensor is under a functorch transform or carries a forward-mode tangent."""
    if torch.compiler.is_compiling():
        return False
    if torch._C._functorch.peek_interpreter_stack() is not None:
        return True
    if torch.autograd.forward_ad._current_level < 0:
        return False
    return any(
        t is not None and torch.autograd.forward_ad.unpack_dual(t).tangent is not None
        for t in tensors
    )


def _autocast(device_type: str, tensors: tuple[Tensor | None, ...]) -> tuple[Tensor | None, ...]:
    """Cast to autocast's dtype where autocast is on, as torch.nn's recurrent layers do."""
    # The second question raises for devices without autocast, such as meta.
    if not torch._C._is_any_autocast_enabled() or not torch.is_autocast_enabled(device_type):
        return tensors
    dtype = torch.get_autocast_dtype(device_type)
    return tuple(
        t.to(dtype)
        if t is not None and t.dtype in (torch.float32, torch.float16, torch.bfloat16)
        else t
        for t in tensors
    )


def _needs_grad(tensors: tuple[Tensor | None, ...]) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def sequence(
    cell: str,
    x: Tensor,
    state: _State,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    *,
    lengths: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    reset: Tensor | None = None,
    reverse: bool = False,
    return_c_sequence: bool = False,
    backend: str | None = None,
    apart: str | None = None,
) -> tuple[Tensor, _State, Tensor | None]:
    """Run one layer in one direction over a whole sequence.

    Args:
        cell: a key of `seqkernels.cells.CELLS`.
        x: input at every step, [T, N, I]; packed, [sum(batch_sizes), I].
        state: initial (h,) or (h, c), each [N, H].
        weight_ih: input weights, gates in torch's order, [G*H, I].
        weight_hh: recurrent weights, [G*H, H].
        bias_ih: bias added to the input product, [G*H].
        bias_hh: bias added to the recurrent product, [G*H].
        lengths: steps of each row, int64 on x's device, unsorted, [N]. Past its end a row keeps its
            state and its output is zero.
        batch_sizes: rows alive at every step, as PackedSequence has them, int64 on the CPU, [T].
        reset: where true, the state is zeroed before that step, [T, N].
        reverse: run from each row's last step to its first.
        return_c_sequence: also return c after every step.
        backend: a name from `dispatch.backends()`; by default the first that can run.
        apart: what `joined` said when it was asked about this layer and others, for `explain`.

    Returns:
        The hidden state after every step, [T, N, H] or packed; the final state, each [N, H]; and c
        after every step in the same layout, or None.

    Raises:
        RuntimeError: the named backend cannot run this call, or shapes do not fit; the message says
            which.
    """
    spec = CELLS[cell]
    plain = lengths is None and batch_sizes is None and reset is None and not return_c_sequence
    if plain and backend is None and spec.pointwise and x.shape[0] == 1 and _plain(x):
        # One step, as a model that runs live takes them: no weights are packed for it.
        state = _plain_cell(cell, x[0], state, weight_ih, weight_hh, bias_ih, bias_hh)
        return state[0].unsqueeze(0), state, None
    # fmt: off
    x, weight_ih, weight_hh, bias_ih, bias_hh, *state = tensors = _autocast(
        x.device.type, (x, weight_ih, weight_hh, bias_ih, bias_hh, *state)
    )
    # fmt: on
    training = _needs_grad(tensors)
    call = dispatch.Call(
        cell=cell,
        device=x.device,
        dtype=x.dtype,
        steps=x.shape[0] if batch_sizes is None else batch_sizes.shape[0],
        batch=state[0].shape[0],
        hidden_size=weight_hh.shape[1],
        input_size=x.shape[-1],
        training=training,
        lengths=lengths is not None,
        packed=batch_sizes is not None,
        reset=reset is not None,
        transformed=_transformed(tensors),
        c_sequence=return_c_sequence,
        reverse=reverse,
        bias=bias_ih is not None,
        apart=apart,
    )
    weights = (weight_ih, weight_hh, bias_ih, bias_hh)
    layout = (lengths, batch_sizes, reset, reverse)
    return dispatch.again_if_refused(
        lambda: _sequence(dispatch.choose(call, backend), call, x, state, weights, layout)
    )


def _sequence(chosen, call, x, state, weights, layout):
    """What `sequence` returns, on the chosen backend."""
    spec, training = CELLS[call.cell], call.training
    weight_ih, weight_hh, bias_ih, bias_hh = weights
    if chosen.name == "onednn":
        return _onednn(x, state, *weights, call.reverse)
    if chosen.suffix is None:
        gates_x = F.linear(x, weight_ih, bias_ih)
        return reference_sequence(spec, gates_x, weight_hh, bias_hh, state, *layout)
    h_0, c_0 = state if spec.states == 2 else (state[0], None)
    layout = (*layout, training or call.c_sequence)
    if training:
        compiling = torch.compiler.is_compiling()
        layer = ops.get(f"{call.cell}_layer") if compiling else EAGER[call.cell]
        results = layer(x, *weights, h_0, c_0, *layout, chosen.suffix)
    else:
        bias_x, bias_h = fold_bias(spec, bias_ih, bias_hh)
        gates_x = linear(x, weight_ih, bias_x)
        run = ops.get(f"{call.cell}_sequence{chosen.suffix}")
        if torch.compiler.is_compiling():
            results = run(gates_x, weight_hh, bias_h, h_0, c_0, *layout)
        else:  # Past the op's autograd, which is registered in Python and costs 5 us.
            with torch._C._AutoDispatchBelowAutograd():
                results = run(gates_x, weight_hh, bias_h, h_0, c_0, *layout)
    output, h_n, c_n, c_sequence, _ = results
    if spec.states == 1:
        return output, (h_n,), None
    return output, (h_n, c_n), c_sequence if call.c_sequence else None


def joined(
    cell: str,
    x: Tensor,
    state: _State,
    weights: Sequence[Sequence[Tensor | None]],
    stacked: bool,
    *,
    lengths: Tensor | None = None,
    batch_sizes: Tensor | None = None,
    reset: Tensor | None = None,
    return_c_sequence: bool = False,
    backend: str | None = None,
) -> tuple[Tensor, _State, Tensor | None] | str:
    """Run both directions of a layer, or layers that feed one another, in one launch.

    Args:
        cell: a key of `seqkernels.cells.CELLS`.
        x: input at every step, [T, N, I]; packed, [sum(batch_sizes), I].
        state: initial (h,) or (h, c), each [parts, N, H].
        weights: for each part weight_ih, weight_hh, bias_ih and bias_hh, as `sequence` takes them.
        stacked: the parts are layers, the first one first; otherwise the two directions of a layer,
            forward and reverse.
        lengths: as in `sequence`.
        batch_sizes: as in `sequence`.
        reset: as in `sequence`.
        return_c_sequence: also return c after every step; of layers that of the last.
        backend: as in `sequence`.

    Returns:
        The hidden state after every step, of directions side by side, [T, N, 2*H], of layers that
        of the last, [T, N, H], or packed; the final state, each [parts, N, H]; and c after every
        step, or None. A string where this call takes a launch for each part: the reason.

    Raises:
        RuntimeError: the named backend cannot run this call; the message says why.
    """
    spec = CELLS[cell]
    count = len(weights)
    flat = _autocast(x.device.type, (x, *state, *(t for part in weights for t in part)))
    training, (x, *rest) = _needs_grad(flat), flat
    state, rest = rest[: spec.states], rest[spec.states :]
    ih, hh, bias_ih, bias_hh = ([t for t in rest[i::4] if t is not None] for i in range(4))
    call = dispatch.Call(
        cell=cell,
        device=x.device,
        dtype=x.dtype,
        steps=x.shape[0] if batch_sizes is None else batch_sizes.shape[0],
        batch=state[0].shape[1],
        hidden_size=hh[0].shape[1],
        input_size=x.shape[-1],
        training=training,
        lengths=lengths is not None,
        packed=batch_sizes is not None,
        reset=reset is not None,
        transformed=_transformed(flat),
        c_sequence=return_c_sequence,
        bias=bool(bias_ih),
        directions=1 if stacked else count,
        layers=count if stacked else 1,
    )
    inputs = Inputs(
        x, state[0], state[1] if spec.states == 2 else None, lengths, batch_sizes, reset
    )
    found = Weights(ih, hh, bias_ih, bias_hh)
    return dispatch.again_if_refused(
        lambda: _joined(dispatch.join(call, backend), call, inputs, found)
    )


def _joined(chosen, call, inputs, weights):
    """What `joined` returns, on the chosen backend; a string where there is none."""
    if isinstance(chosen, str):
        return chosen
    spec, stacked = CELLS[call.cell], call.layers > 1
    suffix, backward_apart = chosen.backend.suffix, chosen.backward_apart is not None
    if not call.training:
        results = joined_forward(spec, inputs, weights, stacked, call.c_sequence, suffix)
    elif torch.compiler.is_compiling():
        op = ops.get(f"{call.cell}_joined")
        x, *others = inputs
        results = op(x, *weights, *others, stacked, True, suffix, backward_apart)
    else:
        results = EAGER_JOINED[call.cell](inputs, weights, stacked, suffix, backward_apart)
    output, h_n, c_n, c_sequence = results[:4]
    if stacked and not call.training:
        output, c_sequence = output[-1], c_sequence[-1] if call.c_sequence else None
    if spec.states == 1:
        return output, (h_n,), None
    return output, (h_n, c_n), c_sequence if call.c_sequence else None


def _onednn(x, state, weight_ih, weight_hh, bias_ih, bias_hh, reverse):
    """Torch's own oneDNN LSTM layer: (output, (h_n, c_n), None)."""
    bias = bias_ih is not None
    zeros = None if bias else weight_ih.new_zeros(weight_ih.shape[0])
    output, h_n, c_n, _ = torch.ops.aten.mkldnn_rnn_layer.default(
        x.contiguous(),
        weight_ih,
        weight_hh,
        bias_ih if bias else zeros,
        bias_hh if bias else zeros,
        state[0].contiguous(),
        state[1].contiguous(),
        reverse,
        [],
        _MODE_LSTM,
        weight_hh.shape[1],
        1,
        bias,
        False,
        False,
        False,
    )
    return output, (h_n, c_n), None


_MODE_LSTM = 2  # at::native's RNN_MODE


def _plain(x: Tensor) -> bool:
    """Whether a cell step is an eager one on the CPU that nothing looks at or transforms.

    The dispatcher would take the native kernels; asking it takes as long as the kernel does.
    """
    return (
        not torch.compiler.is_compiling()
        and dispatch.takes_native(x)
        and not torch._C._is_any_autocast_enabled()
        and torch._C._functorch.peek_interpreter_stack() is None
        and torch.autograd.forward_ad._current_level < 0
    )


def _plain_cell(cell, x, state, weight_ih, weight_hh, bias_ih, bias_hh):
    """One step on the shortest way: the new state."""
    differentiable = torch.is_grad_enabled() and (
        weight_hh.requires_grad
        or weight_ih.requires_grad
        or x.requires_grad
        or _needs_grad((bias_ih, bias_hh, *state))
    )
    if cell in _TORCH_CELLS and (differentiable or x.shape[0] > FEW_ROWS):
        # Two products and a function of one value: no kernel does less than torch's own op.
        return (_TORCH_CELLS[cell](x, state[0], weight_ih, weight_hh, bias_ih, bias_hh),)
    if differentiable:
        new_state = Step.apply(cell, x, weight_ih, weight_hh, bias_ih, bias_hh, *state)
        return new_state if len(state) == 2 else (new_state,)
    return infer(cell, x, state, weight_ih, weight_hh, bias_ih, bias_hh)


_TORCH_CELLS = {"rnn_tanh": torch.rnn_tanh_cell, "rnn_relu": torch.rnn_relu_cell}


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
    if backend is None and spec.pointwise and _plain(x):
        return _plain_cell(cell, x, state, weight_ih, weight_hh, bias_ih, bias_hh)
    # fmt: off
    x, weight_ih, weight_hh, bias_ih, bias_hh, *state = tensors = _autocast(
        x.device.type, (x, weight_ih, weight_hh, bias_ih, bias_hh, *state)
    )
    # fmt: on
    training = _needs_grad(tensors)
    call = dispatch.Call(
        cell=cell,
        device=x.device,
        dtype=x.dtype,
        steps=1,
        batch=x.shape[0],
        hidden_size=weight_hh.shape[1],
        input_size=x.shape[-1],
        training=training,
        transformed=_transformed(tensors),
        bias=bias_ih is not None,
    )
    chosen = dispatch.choose(call, backend)
    gates_x = F.linear(x, weight_ih, bias_ih)
    if chosen.suffix is None or not spec.pointwise:
        return reference.step(cell, gates_x, weight_hh, bias_hh, tuple(state))
    h, c = state if spec.states == 2 else (state[0], None)
    gates_h = F.linear(h, weight_hh, bias_hh)
    suffix = "_triton" if chosen.name == "triton" else ""
    new_h, new_c, _ = ops.get(f"{cell}_cell{suffix}")(gates_x, gates_h, h, c, training)
    return (new_h,) if spec.states == 1 else (new_h, new_c)

"""One layer in one direction, or several in one launch, on checked arguments.

The layers in `seqkernels.nn` are loops over these functions and `cell`. Shapes are checked by
the caller that faces the user; the ops check them again.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from . import arguments, dispatch, modes, ops
from .cells import CELLS
from .ops.gemm import linear
from .ops.joined import EAGER_JOINED, Inputs, Weights, joined_forward
from .ops.layer import EAGER
from .ops.sequence import reference_sequence
from .ops.weights import fold_bias
from .step import cell as cell  # re-exported
from .step import is_plain, plain_cell

_State = tuple[Tensor, ...]


def _before_reverse_steps(reset: Tensor, lengths: Tensor | None) -> Tensor:
    """Where a reverse run zeroes the state before a step, [T, N], of where episodes begin.

    It leaves an episode at the episode's first step, so the step before that, which it takes next,
    starts anew. What is marked past a row's end marks nothing.
    """
    found = F.pad(reset[1:], (0, 0, 0, 1))
    if lengths is not None:
        after = torch.arange(1, reset.shape[0] + 1, device=reset.device).unsqueeze(-1)
        found = found & (after < lengths)
    return found


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
        reset: where true, an episode begins at that step, [T, N]: no state passes between it and
            the step before. The row's initial state meets its first step in the order of the run,
            so forward a reset at step 0 drops it; the final state is that of the last one.
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
    if reset is not None and reverse:
        reset = _before_reverse_steps(reset, lengths)
    plain = lengths is None and batch_sizes is None and reset is None and not return_c_sequence
    plain = plain and backend is None and spec.pointwise and x.shape[0] == 1
    if plain and is_plain(x, weight_ih, weight_hh, bias_ih, bias_hh, *state):
        # One step, as a model that runs live takes them: no weights are packed for it.
        state = plain_cell(cell, x[0], state, weight_ih, weight_hh, bias_ih, bias_hh)
        return state[0].unsqueeze(0), state, None
    wide = modes.wide_results(cell, state[-1], batch_sizes is not None)
    # fmt: off
    x, weight_ih, weight_hh, bias_ih, bias_hh, *state = tensors = modes.autocast(
        x.device.type, (x, weight_ih, weight_hh, bias_ih, bias_hh, *state)
    )
    # fmt: on
    weights = (weight_ih, weight_hh, bias_ih, bias_hh)
    arguments.check_part(cell, x, x.shape[-1], state, *weights)
    arguments.check_layout(x, state[0].shape[0], lengths, batch_sizes, reset)
    training = modes.needs_grad(tensors)
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
        transformed=modes.transformed(tensors),
        c_sequence=return_c_sequence,
        reverse=reverse,
        bias=bias_ih is not None,
        apart=apart,
    )
    layout = (lengths, batch_sizes, reset, reverse)
    output, state, c_sequence = dispatch.again_if_refused(
        lambda: _sequence(dispatch.choose(call, backend), call, x, state, weights, layout)
    )
    if wide is not None:
        output, state = output.to(wide), tuple(s.to(wide) for s in state)
        c_sequence = None if c_sequence is None else c_sequence.to(wide)
    return output, state, c_sequence


def _sequence(chosen, call, x, state, weights, layout):
    """What `sequence` returns, on the chosen backend."""
    spec, training = CELLS[call.cell], call.training
    weight_ih, weight_hh, bias_ih, bias_hh = weights
    if chosen.name == "onednn":
        return _onednn(x, state, *weights, call.reverse)
    if chosen.suffix is None:
        gates_x = F.linear(x, weight_ih, bias_ih)
        arguments.check_lengths(layout[0], call.steps)  # the kernels' ops do so themselves
        results = reference_sequence(spec, gates_x, weight_hh, bias_hh, state, *layout)
        return *results[:2], results[2] if call.c_sequence else None
    h_0, c_0 = state if spec.states > 1 else (state[0], None)
    layout = (*layout, training or call.c_sequence)
    if training:
        compiling = torch.compiler.is_compiling() or modes.captured()
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
    flat = modes.autocast(x.device.type, (x, *state, *(t for part in weights for t in part)))
    training, (x, *rest) = modes.needs_grad(flat), flat
    state, rest = rest[: spec.states], rest[spec.states :]
    for i in range(count):
        features = state[0].shape[-1] if stacked and i else x.shape[-1]
        own = rest[4 * i : 4 * i + 4]
        arguments.check_part(cell, x, features, [s[i] for s in state], *own)
    arguments.check_layout(x, state[0].shape[1], lengths, batch_sizes, reset)
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
        transformed=modes.transformed(flat),
        c_sequence=return_c_sequence,
        bias=bool(bias_ih),
        directions=1 if stacked else count,
        layers=count if stacked else 1,
    )
    if reset is not None and not stacked:
        reset = torch.stack((reset, _before_reverse_steps(reset, lengths)))
    inputs = Inputs(x, state[0], state[1] if spec.states > 1 else None, lengths, batch_sizes, reset)
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
    if not call.training and not modes.captured():
        results = joined_forward(spec, inputs, weights, stacked, call.c_sequence, suffix)
    elif torch.compiler.is_compiling() or modes.captured():
        op, save = ops.get(f"{call.cell}_joined"), call.training or call.c_sequence
        x, *others = inputs
        results = op(x, *weights, *others, stacked, save, suffix, backward_apart)
    else:
        results = EAGER_JOINED[call.cell](inputs, weights, stacked, suffix, backward_apart)
    output, h_n, c_n, c_sequence = results[:4]
    if stacked and output.dim() > inputs.x.dim():  # every layer's, where nothing else was needed
        output, c_sequence = output[-1], c_sequence[-1] if call.c_sequence else None
    if spec.states == 1:
        return output, (h_n,), None
    return output, (h_n, c_n), c_sequence if call.c_sequence else None


def _onednn(x, state, weight_ih, weight_hh, bias_ih, bias_hh, reverse):
    """Torch's own oneDNN LSTM layer: (output, (h_n, c_n), None)."""
    bias = bias_ih is not None or bias_hh is not None
    # It takes two biases, also where it is told that there are none.
    zeros = weight_ih.new_zeros(weight_ih.shape[0]) if bias_ih is None or bias_hh is None else None
    output, h_n, c_n, _ = torch.ops.aten.mkldnn_rnn_layer.default(
        x.contiguous(),
        weight_ih,
        weight_hh,
        zeros if bias_ih is None else bias_ih,
        zeros if bias_hh is None else bias_hh,
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

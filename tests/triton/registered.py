"""The registered ops with the interpreter's kernels behind them, on CPU tensors."""

from dataclasses import replace

import interpreter  # noqa: F401  isort: skip  (sets TRITON_INTERPRET)
import torch

import seqkernels
import seqkernels.triton  # noqa: F401  (defines the ops)
from seqkernels import dispatch
from seqkernels.cells import CELLS
from seqkernels.triton import launch, pointwise

# Kept alive: its registrations end with it.
_CPU = torch.library.Library("seqkernels", "IMPL")


def _register() -> None:
    """Run the CUDA implementations on CPU tensors, and let the dispatcher choose them."""
    for cell, spec in CELLS.items():
        pairs = [("sequence_triton", launch.forward), ("sequence_triton_backward", launch.backward)]
        if spec.pointwise:
            pairs += [
                ("cell_triton", pointwise.forward),
                ("cell_triton_backward", pointwise.backward),
            ]
        for name, function in pairs:

            def kernel(*args, cell=cell, function=function):
                return function(cell, *args)

            _CPU.impl(f"{cell}_{name}", kernel, "CPU")
    triton = dispatch._BY_NAME["triton"]
    dispatch._BY_NAME["triton"] = replace(triton, devices=(), can_run=lambda call: None)


def _inputs(cell, hidden_size=4):
    spec = CELLS[cell]
    shapes = [(2, 3, spec.gates * hidden_size), (spec.gates * hidden_size, hidden_size)]
    shapes += [(spec.gates * hidden_size,), *[(3, hidden_size)] * spec.states]
    return [torch.randn(s).requires_grad_() for s in shapes] + [None] * (2 - spec.states)


def opcheck():
    """Schema, autograd registration, fakes and AOT dispatch of every op."""
    _register()
    for cell, spec in CELLS.items():
        gates_x, weight, bias, h, c = _inputs(cell)
        get = lambda name: getattr(torch.ops.seqkernels, f"{cell}_{name}").default  # noqa: B023, E731
        layout = (torch.tensor([2, 0, 1]), None, None, True)
        forward = (gates_x, weight, bias, h, c, *layout, True)
        torch.library.opcheck(get("sequence_triton"), forward)
        with torch.no_grad():
            output, h_n, c_n, c_sequence, saved = get("sequence_triton")(*forward)
        grads = (torch.ones_like(output), torch.ones_like(h_n), None, None)
        detached = [None if x is None else x.detach() for x in (weight, bias, h, c)]
        kept = (*detached, output, c_sequence, saved, *layout)
        torch.library.opcheck(get("sequence_triton_backward"), (*grads, *kept))
        if spec.pointwise:
            step = (
                gates_x[0].detach().requires_grad_(),
                gates_x[1].detach().requires_grad_(),
                h,
                c,
            )
            torch.library.opcheck(get("cell_triton"), (*step, True))
            with torch.no_grad():
                new_h, new_c, saved = get("cell_triton")(*step, True)
            state = [None if x is None else x.detach() for x in (h, c)]
            given = (torch.ones_like(new_h), None, *state, new_h, new_c, saved)
            torch.library.opcheck(get("cell_triton_backward"), given)


def compiled():
    """Layers and cells as one graph, with the gradients of the eager call."""
    _register()
    layers = {
        "lstm": seqkernels.LSTM(3, 4),
        "gru": seqkernels.GRU(3, 4, bidirectional=True),
        "gru_reset_before": seqkernels.GRU(3, 4, reset="before"),
        "rnn_tanh": seqkernels.RNN(3, 4),
        "rnn_relu": seqkernels.RNN(3, 4, nonlinearity="relu"),
        "lstm cell": seqkernels.LSTMCell(3, 4),
        "gru cell": seqkernels.GRUCell(3, 4),
    }
    with seqkernels.use_backend("triton"):
        for name, layer in layers.items():
            x = torch.randn(2, 3) if "cell" in name else torch.randn(2, 2, 3)
            results = []
            for function in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
                layer.zero_grad()
                output = function(x)
                output = output if isinstance(output, torch.Tensor) else output[0]
                output.square().sum().backward()
                results.append([output.detach(), *(p.grad.clone() for p in layer.parameters())])
            for eager, graph in zip(*results, strict=True):
                torch.testing.assert_close(eager, graph, rtol=1e-6, atol=1e-6, msg=name)

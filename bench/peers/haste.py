"""Haste 0.5.0rc0: LSTM and GRU with a product and a pointwise kernel a step, float32 without TF32.

As shipped it asks nvcc for an architecture that CUDA 13 no longer knows, so it is rebuilt for the
GPU: GPU_ARCH_FLAGS="-gencode arch=compute_90,code=sm_90", -std=c++17, --no-build-isolation.
"""

import importlib.util

import torch

from ..contestants import Prepared, Refused
from ..workload import Workload
from . import GATE_NAMES, no_gpu

NAME = "Haste"
LABEL = "rebuilt for this GPU"


def unavailable() -> str | None:
    """The reason it cannot run here, or None."""
    if importlib.util.find_spec("haste_pytorch") is None:
        return "haste_pytorch is not installed"
    return no_gpu()


def build(work: Workload, mode: str) -> Prepared:
    """The layer of a workload.

    Raises:
        Refused: it has no such cell or dtype.
    """
    import haste_pytorch

    case = work.case
    if case.cell not in ("lstm", "gru"):
        raise Refused(f"it has no {case.cell}")
    if case.dtype != "float32":
        raise Refused("its layers are float32, without TF32")
    name = case.cell.upper()
    layer = getattr(haste_pytorch, name)(case.input_size, case.hidden_size).to(work.device)
    layer.from_native_weights(*(work.weights[f"layers.0.{n}"].detach() for n in GATE_NAMES))
    layer.to(work.device).train(mode == "training")

    def forward(work: Workload):
        return layer(work.x)

    forward.parameters = layer.parameters
    own = [name for name, _ in layer.named_parameters()]
    call = work.call(forward, mode)
    return Prepared(call, named=lambda returned: _named(returned, own, case.cell))


def _named(returned, own: list[str], cell: str) -> dict[str, torch.Tensor]:
    """Results under torch.nn's names; gradients [I, G*H] in Haste's gate order are reordered."""
    output, state = returned[:2]
    states = state if isinstance(state, tuple) else (state,)
    named = {"output": output} | dict(zip(("h_n", "c_n"), states, strict=False))
    if len(returned) == 2:
        return named
    grads = dict(zip(["input", *own], returned[2], strict=True))
    # Haste keeps LSTM as i, g, f, o and GRU as z, r, n; torch as i, f, g, o and r, z, n.
    order, gates = ((0, 2, 1, 3), 4) if cell == "lstm" else ((1, 0, 2), 3)

    def reordered(grad: torch.Tensor) -> torch.Tensor:
        chunks = grad.chunk(gates, -1)
        return torch.cat([chunks[i] for i in order], -1)

    bias = reordered(grads["bias"])
    # Its LSTM has one bias, the sum of torch's two, which therefore have the same gradient.
    hidden = reordered(grads["recurrent_bias"]) if "recurrent_bias" in grads else bias
    return named | {
        "grad_input": grads["input"],
        "grad_layers.0.weight_ih_l0": reordered(grads["kernel"]).T,
        "grad_layers.0.weight_hh_l0": reordered(grads["recurrent_kernel"]).T,
        "grad_layers.0.bias_ih_l0": bias,
        "grad_layers.0.bias_hh_l0": hidden,
    }

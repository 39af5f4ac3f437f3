"""TorchRL's LSTMModule and GRUModule with their Triton backend, without resets.

They read and write a TensorDict laid out [N, T, ...]; making it is part of the call, as it is for
their users. Products are TF32 for "tf32" and IEEE for "float32".
"""

import importlib.util

import torch
from torch import nn

from ..contestants import Prepared, Refused
from ..workload import Workload
from . import no_gpu

NAME = "TorchRL"
LABEL = None

_CLASSES = {"lstm": "LSTMModule", "gru": "GRUModule"}


def unavailable() -> str | None:
    """The reason it cannot run here, or None."""
    if importlib.util.find_spec("torchrl") is None:
        return "torchrl is not installed"
    return no_gpu()


def build(work: Workload, mode: str) -> Prepared:
    """The layer of a workload.

    Raises:
        Refused: it has no such cell or dtype.
    """
    if work.case.cell not in _CLASSES:
        raise Refused(f"it has no {work.case.cell}")
    if work.case.dtype not in ("tf32", "float32"):
        raise Refused("its layers are float32")
    layer = _Layer(work, "triton")
    names = tuple(f"layers.0.{name}" for name, _ in layer.module_parameters())
    return Prepared(work.call(layer, mode), names)


class _Layer(nn.Module):
    def __init__(self, work: Workload, backend: str):
        super().__init__()
        import tensordict
        import torchrl.modules

        case = work.case
        self.states = ["h", "c"] if case.cell == "lstm" else ["h"]
        precision = {"recurrent_matmul_precision": "tf32" if case.dtype == "tf32" else "ieee"}
        self.layer = getattr(torchrl.modules, _CLASSES[case.cell])(
            input_size=case.input_size,
            hidden_size=case.hidden_size,
            in_keys=["x", *self.states],
            out_keys=["output", *(("next", key) for key in self.states)],
            recurrent_backend=backend,
            default_recurrent_mode=True,
            device=work.device,
            **(precision if backend == "triton" else {}),
        )
        self.tensordict = tensordict.TensorDict
        for name, parameter in self.module_parameters():
            parameter.data.copy_(work.weights[f"layers.0.{name}"])
        shape = (case.batch, work.length)
        self.is_init = torch.zeros(*shape, 1, dtype=torch.bool, device=work.device)
        self.zeros = torch.zeros(*shape, 1, case.hidden_size, device=work.device)

    def module_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """The parameters under torch.nn's names."""
        return [(name.rpartition(".")[2], p) for name, p in self.layer.named_parameters()]

    def forward(self, work: Workload):
        """Run x [T, N, I] as a TensorDict [N, T]; the state of every step comes back."""
        data = {"x": work.x.transpose(0, 1), "is_init": self.is_init}
        data |= dict.fromkeys(self.states, self.zeros)
        out = self.layer(self.tensordict(data, batch_size=self.is_init.shape[:2]))
        final = tuple(out["next", key][:, -1].transpose(0, 1) for key in self.states)
        return out["output"].transpose(0, 1), final if len(final) == 2 else final[0]

"""A case made concrete: its weights, its input, and the calls that a contestant is timed on.

Everything here uses torch.nn's interface only, so the same code drives torch.nn and seqkernels.
"""

from collections.abc import Callable, Sequence
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from .cases import Case

# (class of a layer, class of a cell, further arguments) of every cell that torch.nn has.
_CLASSES = {
    "lstm": ("LSTM", "LSTMCell", {}),
    "gru": ("GRU", "GRUCell", {}),
    "rnn_tanh": ("RNN", "RNNCell", {"nonlinearity": "tanh"}),
    "rnn_relu": ("RNN", "RNNCell", {"nonlinearity": "relu"}),
}


def torch_dtype(name: str) -> torch.dtype:
    """The torch dtype of a case; "tf32" is float32."""
    return torch.float32 if name == "tf32" else getattr(torch, name)


class Workload:
    """Weights and data of a case.

    Attributes:
        x: input [T, N, I], a PackedSequence if the case is packed, or start tokens [N] to decode.
        lengths: steps of every row, [N] on the device, or None.
        grad_output: gradient of the output in training, with the shape of the output.
        weights: the state_dict of the torch.nn model, in the dtype of the case.
    """

    def __init__(
        self,
        case: Case,
        device: torch.device,
        dtype: torch.dtype | None = None,
        length: int | None = None,
    ):
        """Draw the same numbers for a case on every call.

        Args:
            case: what to make.
            device: where to put it.
            dtype: instead of that of the case; the values are those of the case's dtype.
            length: fewer steps than the case has, for a check.
        """
        self.case, self.device = case, device
        self.length = min(length or case.length, case.length)
        rounded, self.dtype = torch_dtype(case.dtype), dtype or torch_dtype(case.dtype)
        generator = torch.Generator().manual_seed(0)

        def draw(*shape: int) -> Tensor:
            values = torch.randn(*shape, generator=generator).to(rounded)
            return values.to(device, self.dtype)

        model = Model(torch.nn, case)
        for parameter in model.parameters():
            parameter.data = (torch.rand(parameter.shape, generator=generator) - 0.5) * (
                2 * case.hidden_size**-0.5
            )
        self.weights = {
            name: value.to(rounded).to(device, self.dtype)
            for name, value in model.state_dict().items()
        }
        steps, rows = self.length, case.batch
        output_size = (case.proj_size or case.hidden_size) * (1 + case.bidirectional)
        self.lengths = self.lengths_host = None
        if case.kind == "decode":
            self.x = torch.arange(rows, device=device) % case.vocabulary
            self.grad_output = None
            return
        self.x = draw(steps, rows, case.input_size)
        self.grad_output = draw(steps, rows, output_size)
        if case.rows != "padded":
            self.lengths_host = torch.tensor([min(n, steps) for n in case.lengths()])
            self.lengths = self.lengths_host.to(device)
        if case.rows == "packed":
            self.x = pack_padded_sequence(self.x, self.lengths_host)
            self.grad_output = pack_padded_sequence(self.grad_output, self.lengths_host).data

    def model(self, namespace: ModuleType) -> "Model":
        """The model of the case from torch.nn or seqkernels, with the weights loaded."""
        model = Model(namespace, self.case).to(self.device, self.dtype)
        model.load_state_dict(self.weights)
        for layer in model.layers:
            if hasattr(layer, "flatten_parameters"):
                layer.flatten_parameters()
        return model

    def call(self, model: Callable, mode: str) -> Callable[[], Any]:
        """The call to be timed: forward in inference mode, or forward and backward.

        Args:
            model: maps this workload's input to (output, state); its `parameters()` get gradients.
            mode: "inference" or "training".

        Returns:
            A function without arguments. It returns what `results` names.
        """
        if mode == "inference":
            return torch.inference_mode()(lambda: model(self))
        leaf = _data(self.x).requires_grad_()
        x = self.x._replace(data=leaf) if isinstance(self.x, PackedSequence) else leaf
        self.x = x
        inputs = [leaf, *model.parameters()]

        def training():
            output, state = model(self)
            return output, state, torch.autograd.grad(_data(output), inputs, self.grad_output)

        return training


class Model(nn.Module):
    """Layers of torch.nn or of seqkernels, as a case wants them.

    Called with a workload; returns the output and the final state, or for a decode case the logits
    [N, V] and the tokens [N] of every step.
    """

    def __init__(self, namespace: ModuleType, case: Case):
        super().__init__()
        layer, cell, arguments = _CLASSES[case.cell]
        self.case = case
        self.native_lengths = namespace is not torch.nn
        self.embedding = self.projection = None
        if case.kind == "sequence":
            if case.proj_size:
                arguments = {**arguments, "proj_size": case.proj_size}
            layers = [
                getattr(namespace, layer)(
                    case.input_size,
                    case.hidden_size,
                    num_layers=case.num_layers,
                    bidirectional=case.bidirectional,
                    **arguments,
                )
            ]
        else:
            sizes = [case.input_size] + [case.hidden_size] * (case.num_layers - 1)
            layers = [
                getattr(namespace, cell)(size, case.hidden_size, **arguments) for size in sizes
            ]
        self.layers = nn.ModuleList(layers)
        if case.kind == "decode":
            self.embedding = nn.Embedding(case.vocabulary, case.input_size)
            self.projection = nn.Linear(case.hidden_size, case.vocabulary)

    def forward(self, work: Workload):
        """Run the workload's input through the layers."""
        if self.case.kind == "cell":
            return self._steps(work)
        if self.case.kind == "decode":
            return self._decode(work)
        if self.case.rows != "lengths":
            return self.layers[0](work.x)
        if self.native_lengths:
            return self.layers[0](work.x, lengths=work.lengths)
        packed = pack_padded_sequence(work.x, work.lengths_host)
        output, state = self.layers[0](packed)
        return pad_packed_sequence(output, total_length=work.length)[0], state

    def _steps(self, work: Workload):
        state, outputs = None, []
        for x in work.x.unbind(0):
            state = self.layers[0](x, state)
            outputs.append(state[0] if isinstance(state, tuple) else state)
        return torch.stack(outputs), state

    def _decode(self, work: Workload):
        token, states = work.x, [None] * len(self.layers)
        logits, tokens = [], []
        for _ in range(work.length):
            h = self.embedding(token)
            for i, layer in enumerate(self.layers):
                states[i] = layer(h, states[i])
                h = states[i][0] if isinstance(states[i], tuple) else states[i]
            logits.append(self.projection(h))
            token = logits[-1].argmax(-1)
            tokens.append(token)
        return logits, tokens


def results(returned: Sequence[Any], parameters: Sequence[str]) -> dict[str, Tensor]:
    """Name every tensor that a call returned, for the check.

    Args:
        returned: of a call made by `Workload.call`.
        parameters: names of the parameters, in the order of the gradients.
    """
    output, state = returned[:2]
    if isinstance(output, list):
        return {"tokens": torch.stack(state)}
    named = {"output": _data(output)}
    states = state if isinstance(state, tuple) else (state,)
    named |= dict(zip(("h_n", "c_n"), states, strict=False))
    if len(returned) == 3:
        names = ["grad_input", *(f"grad_{name}" for name in parameters)]
        named |= dict(zip(names, returned[2], strict=True))
    return named


def _data(x: Tensor | PackedSequence) -> Tensor:
    return x.data if isinstance(x, PackedSequence) else x

"""LSTMCell, GRUCell and RNNCell: drop-in replacements of the cells of `torch.nn`."""

import torch
from torch import Tensor, nn

from .. import functional
from . import checks, tools
from .base import as_recurrence_has
from .layers import _Device, form_repr, set_form


def _weights(module: nn.RNNCellBase) -> tuple[Tensor | None, ...]:
    """weight_ih, weight_hh, bias_ih, bias_hh."""
    p = module._parameters
    try:  # Faster than attributes, but a parametrised or replaced one is an attribute only.
        return p["weight_ih"], p["weight_hh"], p["bias_ih"], p["bias_hh"]
    except KeyError:
        return module.weight_ih, module.weight_hh, module.bias_ih, module.bias_hh


def _step(
    module: nn.RNNCellBase, cell: str, x: Tensor, state: tuple[Tensor, ...] | None
) -> tuple[Tensor, ...]:
    """One step of x [N, I] or [I] from state, each [N, H] or [H], with the result alike."""
    batched = x.dim() == 2
    if not batched:
        x = x.unsqueeze(0)
        if state is not None:
            state = tuple(s.unsqueeze(0) for s in state)
    hidden_size = module.hidden_size
    if state is None:
        zeros = x.new_zeros(x.size(0), hidden_size)
        state = (zeros, zeros) if cell == "lstm" else (zeros,)
    weights = as_recurrence_has(module, _weights(module))
    try:
        if cell == "gru_reset_before":
            # Its step holds a second product, so there is no pointwise op: a sequence of one step.
            _, state, _ = functional.sequence(cell, x.unsqueeze(0), state, *weights)
        else:
            state = functional.cell(cell, x, state, *weights)
    except (RuntimeError, IndexError):
        # A step takes microseconds, so arguments are checked here where they were refused below.
        checks.cell_arguments(x, state, module.input_size, hidden_size, weights[0])
        raise
    return state if batched else tuple(s.squeeze(0) for s in state)


class LSTMCell(nn.RNNCellBase):
    """One LSTM step with the arguments, parameters and results of `torch.nn.LSTMCell`.

    Args:
        input_size: I, features of the input.
        hidden_size: H, features of the state.
        bias: whether the cell has biases.
        device: where the parameters are created.
        dtype: of the parameters.
    """

    __setattr__ = tools.set_attribute

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: _Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=4, device=device, dtype=dtype)

    def forward(
        self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None
    ) -> tuple[Tensor, Tensor]:
        """Take one step.

        Args:
            input: [N, I], or [I] unbatched.
            hx: (h, c), each [N, H] or [H]; zeros if not given.

        Returns:
            The new (h, c), shaped as hx.

        Raises:
            RuntimeError, TypeError, ValueError: as `torch.nn.LSTMCell`, with the offending sizes.
        """
        checks.cell_dims("LSTMCell", "input", input)
        if hx is not None:
            checks.two_states(hx)
            checks.cell_dims("LSTMCell", "hx[0]", hx[0])
            checks.cell_dims("LSTMCell", "hx[1]", hx[1])
        return _step(self, "lstm", input, hx)


class GRUCell(nn.RNNCellBase):
    """One GRU step with the arguments, parameters and results of `torch.nn.GRUCell`.

    Args:
        input_size: I, features of the input.
        hidden_size: H, features of the state.
        bias: whether the cell has biases.
        device: where the parameters are created.
        dtype: of the parameters.
        reset: "after" or "before", as in `GRU`.
        update: "keep" or "replace", as in `GRU`.

    Raises:
        ValueError: `reset` or `update` is something else.
    """

    __setattr__ = tools.set_attribute
    _seqkernels_reset = "after"
    _seqkernels_update = "keep"

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: _Device = None,
        dtype: torch.dtype | None = None,
        *,
        reset: str = "after",
        update: str = "keep",
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=3, device=device, dtype=dtype)
        set_form(self, reset, update)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Take one step.

        Args:
            input: [N, I], or [I] unbatched.
            hx: h, [N, H] or [H]; zeros if not given.

        Returns:
            The new h, shaped as hx.

        Raises:
            RuntimeError, ValueError: as `torch.nn.GRUCell`, with the offending sizes.
        """
        checks.cell_dims("GRUCell", "input", input)
        if hx is not None:
            checks.cell_dims("GRUCell", "hidden", hx)
            hx = (hx,)
        cell = "gru" if self._seqkernels_reset == "after" else "gru_reset_before"
        return _step(self, cell, input, hx)[0]

    def extra_repr(self) -> str:
        """The arguments that differ from their defaults, as torch prints them."""
        return super().extra_repr() + form_repr(self)


class RNNCell(nn.RNNCellBase):
    """One Elman step with the arguments, parameters and results of `torch.nn.RNNCell`.

    Args:
        input_size: I, features of the input.
        hidden_size: H, features of the state.
        bias: whether the cell has biases.
        nonlinearity: "tanh" or "relu"; anything else raises RuntimeError when the cell is called.
        device: where the parameters are created.
        dtype: of the parameters.
    """

    __setattr__ = tools.set_attribute

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        nonlinearity: str = "tanh",
        device: _Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, num_chunks=1, device=device, dtype=dtype)
        self.nonlinearity = nonlinearity

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Tensor:
        """Take one step; arguments, result and errors are those of `GRUCell`."""
        checks.cell_dims("RNNCell", "input", input)
        if hx is not None:
            checks.cell_dims("RNNCell", "hidden", hx)
            hx = (hx,)
        if self.nonlinearity not in ("tanh", "relu"):
            raise RuntimeError(f"Unknown nonlinearity: {self.nonlinearity}")
        return _step(self, f"rnn_{self.nonlinearity}", input, hx)[0]

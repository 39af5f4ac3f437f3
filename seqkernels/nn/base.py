"""What LSTM, GRU and RNN share: parameters, arguments, and the loop over layers and directions."""

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.rnn import PackedSequence

from .. import dispatch, functional
from . import checks, projection

State = tuple[Tensor, ...]  # (h,) or (h, c)


class RecurrentLayer(nn.RNNBase):
    """A stack of recurrent layers with the parameters, names and initial values of `torch.nn`.

    It derives from `torch.nn.RNNBase`, not from LSTM, GRU or RNN: `torch.compile` refuses instances
    of those three. The base class keeps a list of its weights beside the parameters, and weak
    references to them. Both get in the way of parametrisations, deepcopy and swapped parameters,
    and no kernel here needs a flat buffer, so weights are read where they are at every call.
    """

    _has_c = False  # the state is (h, c), and what the user passes and gets is a pair

    @property
    def cell(self) -> str:
        """The name of the recurrence, a key of `seqkernels.cells.CELLS`."""
        raise NotImplementedError

    def flatten_parameters(self) -> None:
        """Do nothing; kept because callers of `torch.nn` layers call it."""

    @property
    def _flat_weights(self) -> list[Tensor | None]:
        return [getattr(self, name, None) for name in self._flat_weights_names]

    def _init_flat_weights(self) -> None: ...

    def _update_flat_weights(self) -> None: ...

    # The base class's versions of these four exist to keep its list of weights up to date.
    __setattr__ = nn.Module.__setattr__
    __setstate__ = nn.Module.__setstate__
    _replicate_for_data_parallel = nn.Module._replicate_for_data_parallel

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__.copy()

    def _weights(self, index: int) -> list[Tensor]:
        """weight_ih, weight_hh and, where there are any, bias_ih, bias_hh, weight_hr of a layer.

        A parameter is found faster in its dictionary than as an attribute; one that is parametrised
        or replaced by a plain tensor is an attribute only.
        """
        parameters = self._parameters
        return [
            parameters[name] if name in parameters else getattr(self, name)
            for name in self._all_weights[index]
        ]

    def _forward(
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | tuple[Tensor, Tensor] | None,
        lengths: Tensor | None,
        reset: Tensor | None,
        return_c_sequence: bool = False,
    ) -> tuple[Tensor | PackedSequence, State, Tensor | PackedSequence | None]:
        """Check the arguments, bring them to [T, N, I], run, and give results the input's layout.

        Returns:
            The output, the final state and, if it was asked for, the c sequence of the last layer.
        """
        if hx is None:
            state = None
        elif self._has_c:
            checks.two_states(hx)
            state = tuple(hx)
        else:
            state = (hx,)
        if isinstance(input, PackedSequence):
            return self._forward_packed(input, state, lengths, reset, return_c_sequence)

        dims = input.dim()
        batch_first = self.batch_first
        if dims == 3:
            x = input.transpose(0, 1) if batch_first else input
        elif dims == 2:
            x = input.unsqueeze(1)
        else:
            raise ValueError(
                f"{type(self).__name__}: Expected input to be 2D or 3D, got {dims}D instead"
            )
        if state is not None:
            checks.state_dims(state, dims)
            if dims == 2:
                state = tuple(s.unsqueeze(1) for s in state)
        self._check(x, state, x.size(1), packed=False)
        if lengths is not None:
            checks.lengths(lengths, x, dims)
            lengths = lengths.to(torch.int64)
            if torch.is_grad_enabled():
                # The weights' gradient multiplies the padding by zeros, which NaN would survive.
                steps = torch.arange(x.size(0), device=x.device).unsqueeze(-1)
                x = x.masked_fill((steps >= lengths).unsqueeze(-1), 0)
        if reset is not None:
            checks.reset(reset, input)
            if dims == 2:
                reset = reset.unsqueeze(1)
            elif batch_first:
                reset = reset.transpose(0, 1)

        output, state, c_sequence = self._run(x, state, lengths, None, reset, return_c_sequence)

        if dims == 2:
            output = output.squeeze(1)
            state = tuple(s.squeeze(1) for s in state)
            if c_sequence is not None:
                c_sequence = c_sequence.squeeze(1)
        elif batch_first:
            output = output.transpose(0, 1)
            if c_sequence is not None:
                c_sequence = c_sequence.transpose(0, 1)
        return output, state, c_sequence

    def _forward_packed(
        self,
        input: PackedSequence,
        state: State | None,
        lengths: Tensor | None,
        reset: Tensor | None,
        return_c_sequence: bool,
    ) -> tuple[PackedSequence, State, PackedSequence | None]:
        """As `_forward`, for a packed sequence, whose rows are sorted by length."""
        if lengths is not None or reset is not None:
            name = "lengths" if lengths is not None else "reset"
            raise ValueError(f"{name} goes with a padded input, not with a PackedSequence")
        x, batch_sizes, sorted_indices, unsorted_indices = input
        self._check(x, state, int(batch_sizes[0]), packed=True)
        if state is not None and sorted_indices is not None:
            state = tuple(s.index_select(1, sorted_indices) for s in state)
        output, state, c_sequence = self._run(x, state, None, batch_sizes, None, return_c_sequence)
        if unsorted_indices is not None:
            state = tuple(s.index_select(1, unsorted_indices) for s in state)
        order = (batch_sizes, sorted_indices, unsorted_indices)
        if c_sequence is not None:
            c_sequence = PackedSequence(c_sequence, *order)
        return PackedSequence(output, *order), state, c_sequence

    def _check(self, x: Tensor, state: State | None, batch_size: int, packed: bool) -> None:
        """Check x [T, N, I] or packed [sum, I] and state, each [layers * directions, N, H]."""
        checks.layer_input(x, self.input_size, self._weights(0)[0], packed)
        if state is not None:
            rows = len(self._all_weights)
            expected = [(rows, batch_size, self.proj_size or self.hidden_size)]
            if self._has_c:
                expected.append((rows, batch_size, self.hidden_size))
            checks.layer_state(state, x, expected)

    def _run(
        self,
        x: Tensor,
        state: State | None,
        lengths: Tensor | None,
        batch_sizes: Tensor | None,
        reset: Tensor | None,
        return_c_sequence: bool,
    ) -> tuple[Tensor, State, Tensor | None]:
        """Run every layer and direction over x, [T, N, I] or packed."""
        directions = 2 if self.bidirectional else 1
        count = len(self._all_weights)
        weights = [self._weights(index) for index in range(count)]
        if not self.bias:
            for own in weights:
                own[2:2] = (None, None)
        if state is None:
            batch_size = x.size(1) if batch_sizes is None else int(batch_sizes[0])
            zeros = x.new_zeros(batch_size, self.hidden_size)
            states = [(None if self.proj_size else zeros, zeros)[: 2 if self._has_c else 1]] * count
        else:
            states = [tuple(s[index] for s in state) for index in range(count)]
        layout = {"lengths": lengths, "batch_sizes": batch_sizes, "reset": reset, "backend": None}

        def joined(x: Tensor, parts: slice, wanted: bool):
            """Several parts in one launch, or why not; see functional.joined."""
            if state is None:
                own = tuple(s.expand(len(weights[parts]), -1, -1) for s in states[0])
            else:
                own = tuple(s[parts] for s in state)
            stacked = directions == 1
            return functional.joined(
                self.cell, x, own, weights[parts], stacked, return_c_sequence=wanted, **layout
            )

        may_join = count > 1 and not self.proj_size and dispatch.may_join(x.device)
        found = None
        if may_join and directions == 1 and not (self.dropout and self.training):
            found = joined(x, slice(0, count), return_c_sequence)
            if not isinstance(found, str):
                return found
        final: list[State] = []
        for layer in range(self.num_layers):
            last = layer == self.num_layers - 1
            parts = slice(layer * directions, (layer + 1) * directions)
            wanted = return_c_sequence and last
            if may_join and directions == 2:
                found = joined(x, parts, wanted)
            if found is None or isinstance(found, str):
                x, ends, c_sequence = self._run_apart(
                    x, states[parts], weights[parts], wanted, found, layout
                )
            else:
                x, ends, c_sequence = found
                ends = zip(*(end.unbind() for end in ends), strict=True)
            final.extend(ends)
            if self.dropout and self.training and not last:
                x = F.dropout(x, self.dropout)
        if len(final) == 1:
            return x, tuple(s.unsqueeze(0) for s in final[0]), c_sequence
        return x, tuple(torch.stack(tensors) for tensors in zip(*final, strict=True)), c_sequence

    def _run_apart(
        self,
        x: Tensor,
        states: list[State],
        weights: list[list[Tensor | None]],
        return_c_sequence: bool,
        reason: str | None,
        layout: dict[str, Any],
    ) -> tuple[Tensor, list[State], Tensor | None]:
        """Run one layer, each direction by itself: output, final states, c sequence or None."""
        run = functional.sequence
        if self.proj_size:
            run = projection.sequence
        elif reason is not None:
            layout = {**layout, "apart": reason}
        results = [
            run(
                self.cell,
                x,
                state,
                *own,
                reverse=direction == 1,
                return_c_sequence=return_c_sequence,
                **layout,
            )
            for direction, (state, own) in enumerate(zip(states, weights, strict=True))
        ]
        outputs, ends, c_sequences = zip(*results, strict=True)
        if len(results) == 1:
            return outputs[0], list(ends), c_sequences[0]
        c_sequence = torch.cat(c_sequences, -1) if return_c_sequence else None
        return torch.cat(outputs, -1), list(ends), c_sequence

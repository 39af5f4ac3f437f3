"""Launchers of the small kernels in kernels/ (LSTM, float16) as pairs of ops, for parity checks."""

import torch
from emulator import poisoned

from seqkernels import _extension


def half(*shape):
    return poisoned(*shape, dtype=torch.float16)


def sequence_pair(library, device, schedule):
    """Forward and backward of kernels/persistent_lstm.cu, with the signatures of the ops."""

    def common(h_0, weight_hh, c_0, steps, lengths, reverse, backward):
        batch, hidden = h_0.shape
        plan = _extension.C.plan("lstm", "float16", backward, batch, hidden, **device)
        exchange = torch.zeros(max(1, plan["exchange_bytes"]), dtype=torch.uint8)
        order = None if lengths is None else lengths.argsort(descending=True, stable=True)
        sizes = batch, hidden, steps, reverse, *device.values()
        return *sizes, weight_hh, h_0, c_0, lengths, order, exchange

    def forward(gates_x, weight_hh, bias_hh, h_0, c_0, lengths, _, reset, reverse, save):
        assert reset is None
        steps, batch, hidden = len(gates_x), *h_0.shape
        output, h_n, c_n = half(steps, batch, hidden), half(batch, hidden), half(batch, hidden)
        c_sequence = half(steps, batch, hidden) if save else torch.empty(0)
        saved = half(steps, batch, 4 * hidden) if save else torch.empty(0)
        library.run(
            "test_persistent_forward",
            *common(h_0, weight_hh, c_0, steps, lengths, reverse, False),
            *(gates_x, bias_hh, output, h_n, c_n),
            *((c_sequence, saved) if save else (None, None)),
            schedule=schedule,
        ).check()
        return output, h_n, c_n, c_sequence, saved

    def backward(*arguments):
        *grads, weight_hh, _, h_0, c_0 = arguments[:8]
        output, c_sequence, saved, lengths, *_, reverse = arguments[8:]
        steps, batch, hidden = output.shape
        results = half(steps, batch, 4 * hidden), half(batch, hidden), half(batch, hidden)
        library.run(
            "test_persistent_backward",
            *common(h_0, weight_hh, c_0, steps, lengths, reverse, True),
            *(*grads, output, c_sequence, saved, *results),
            schedule=schedule,
        ).check()
        grad_gates_x, grad_h_0, grad_c_0 = results
        return grad_gates_x, torch.empty(0), grad_h_0, grad_c_0

    return forward, backward


def layers_pair(library, device, schedule):
    """Those of kernels/stacked_lstm.cu."""

    def common(steps, weight_ih, weight_hh, h_0, c_0, lengths, backward):
        _, batch, hidden = h_0.shape
        plan = _extension.C.plan("lstm", "float16", backward, batch, hidden, layers=3, **device)
        exchange = torch.zeros(plan["exchange_bytes"], dtype=torch.uint8)
        order = None if lengths is None else lengths.argsort(descending=True, stable=True)
        sizes = batch, hidden, steps, *device.values()
        return *sizes, *weight_hh, *weight_ih, h_0, c_0, lengths, order, exchange

    def forward(gates_x, weight_ih, weight_hh, bias_ih, bias_hh, h_0, c_0, lengths, _, reset, save):
        assert reset is None
        assert not bias_ih
        assert not bias_hh
        steps, sizes = len(gates_x), h_0.shape
        output, h_n, c_n = half(3, steps, *sizes[1:]), half(*sizes), half(*sizes)
        c_sequence = half(*output.shape) if save else torch.empty(0)
        saved = half(*output.shape[:-1], 4 * sizes[-1]) if save else torch.empty(0)
        library.run(
            "test_layers_forward",
            *common(steps, weight_ih, weight_hh, h_0, c_0, lengths, False),
            *(gates_x, output, h_n, c_n),
            *((c_sequence, saved) if save else (None, None)),
            schedule=schedule,
        ).check()
        return output, h_n, c_n, c_sequence, saved

    def backward(*arguments):
        *grads, weight_ih, weight_hh, _, h_0, c_0 = arguments[:9]
        output, c_sequence, saved, lengths, *_ = arguments[9:]
        results = half(*saved.shape), half(*h_0.shape), half(*h_0.shape)
        library.run(
            "test_layers_backward",
            *common(output.shape[1], weight_ih, weight_hh, h_0, c_0, lengths, True),
            *(*grads, output, c_sequence, saved, *results),
            schedule=schedule,
        ).check()
        grad_gates_x, grad_h_0, grad_c_0 = results
        return grad_gates_x, torch.empty(0), grad_h_0, grad_c_0

    return forward, backward

"""Triton functions of the cells that the package does not have (steps.py)."""

from contextlib import contextmanager

import steps
import triton
import triton.language as tl

from seqkernels.triton.cells import (
    FUNCTIONS,
    CellFunctions,
    positive,
    relu,
    sigmoid,
    sigmoid_grad,
    tanh,
    tanh_grad,
)


@triton.jit
def leaky_rnn_forward(gates_x, gates_h, state, parameters, saved, STAGE: tl.constexpr):
    """One gate, state h; a rate of each unit."""
    u = tanh(gates_x[0] + gates_h[0])
    return (state[0] + parameters[0] * (u - state[0]),), (u,)


@triton.jit
def leaky_rnn_backward(saved, state, new_state, parameters, grads, STAGE: tl.constexpr):
    """The gradient of `leaky_rnn_forward`."""
    rate, u, grad = parameters[0], saved[0], grads[0]
    grad_gate = grad * rate * tanh_grad(u)
    return (grad_gate,), (grad * (u - state[0]),), (grad * (1.0 - rate),)


@triton.jit
def peephole_lstm_forward(gates_x, gates_h, state, parameters, saved, STAGE: tl.constexpr):
    """Gates f, g, o; states h, c; peepholes of f and o."""
    f = sigmoid(gates_x[0] + gates_h[0] + parameters[0] * state[1])
    g = tanh(gates_x[1] + gates_h[1])
    c = g + f * (state[1] - g)
    o = sigmoid(gates_x[2] + gates_h[2] + parameters[1] * c)
    return (o * tanh(c), c), (f, g, o)


@triton.jit
def peephole_lstm_backward(saved, state, new_state, parameters, grads, STAGE: tl.constexpr):
    """The gradient of `peephole_lstm_forward`."""
    f, g, o = saved
    c, new_c = state[1], new_state[1]
    tanh_c = tanh(new_c)
    grad_o = grads[0] * tanh_c * sigmoid_grad(o)
    grad_c = grads[1] + grads[0] * o * tanh_grad(tanh_c) + grad_o * parameters[1]
    grad_f = grad_c * (c - g) * sigmoid_grad(f)
    grad_gates_x = (grad_f, grad_c * (1.0 - f) * tanh_grad(g), grad_o)
    return grad_gates_x, (grad_f * c, grad_o * new_c), (0.0, grad_c * f + grad_f * parameters[0])


@triton.jit
def scaled_gru_forward(gates_x, gates_h, state, parameters, saved, STAGE: tl.constexpr):
    """Gates r, z, n; state h; r * h is scaled, and n sees h through another factor."""
    if STAGE == 0:
        r = sigmoid(gates_x[0] + gates_h[0])
        z = sigmoid(gates_x[1] + gates_h[1])
        operand = parameters[0] * r * state[0]
        return (operand,), (r, z, operand)
    else:
        n = tanh(gates_x[2] + gates_h[2] + parameters[1] * state[0])
        return (n + saved[1] * (state[0] - n),), (n,)


@triton.jit
def scaled_gru_backward(saved, state, new_state, parameters, grads, STAGE: tl.constexpr):
    """The gradient of `scaled_gru_forward`."""
    r, z, n, _ = saved
    h, grad = state[0], grads[0]
    if STAGE == 1:
        grad_z = grad * (h - n) * sigmoid_grad(z)
        grad_n = grad * (1.0 - z) * tanh_grad(n)
        return (grad_z, grad_n), (grad_n * h,), (grad * z + grad_n * parameters[1],)
    else:
        scaled = grad * parameters[0]
        return (scaled * h * sigmoid_grad(r),), (grad * r * h,), (scaled * r,)


@triton.jit
def slstm_forward(gates_x, gates_h, state, parameters, saved, STAGE: tl.constexpr):
    """Gates i, f, z, o; states h, cell c, normaliser n, stabiliser m."""
    log_i = gates_x[0] + gates_h[0]
    log_f = gates_x[1] + gates_h[1] + state[3]
    m = log_i + relu(log_f - log_i)
    i, f = tl.exp(log_i - m), tl.exp(log_f - m)
    z, o = tanh(gates_x[2] + gates_h[2]), sigmoid(gates_x[3] + gates_h[3])
    c, n = f * state[1] + i * z, f * state[2] + i
    return (o * (c / n), c, n, m), (i, f, z, o, positive(log_f - log_i))


@triton.jit
def slstm_backward(saved, state, new_state, parameters, grads, STAGE: tl.constexpr):
    """The gradient of `slstm_forward`."""
    i, f, z, o, forgets = saved
    share, ratio = grads[0] * o / new_state[2], new_state[1] / new_state[2]
    grad_c, grad_n = grads[1] + share, grads[2] - share * ratio
    grad_i = (grad_c * z + grad_n) * i
    grad_f = (grad_c * state[1] + grad_n * state[2]) * f
    grad_m = grads[3] - grad_i - grad_f
    grad_log_f = grad_f + forgets * grad_m
    grad_gates_x = (
        grad_i + (1.0 - forgets) * grad_m,
        grad_log_f,
        grad_c * i * tanh_grad(z),
        grads[0] * ratio * sigmoid_grad(o),
    )
    return grad_gates_x, (), (0.0, grad_c * f, grad_n * f, grad_log_f)


PAIRS = {
    "leaky_rnn": CellFunctions(leaky_rnn_forward, leaky_rnn_backward),
    "peephole_lstm": CellFunctions(peephole_lstm_forward, peephole_lstm_backward),
    "scaled_gru": CellFunctions(scaled_gru_forward, scaled_gru_backward),
    "slstm": CellFunctions(slstm_forward, slstm_backward),
}


@contextmanager
def added():
    """While it lasts, the package's tables hold these cells."""
    with steps.added():
        FUNCTIONS.update(PAIRS)
        try:
            yield
        finally:
            for name in PAIRS:
                del FUNCTIONS[name]

"""The mathematics of every cell: the Triton twin of csrc/cells/, same names, same order.

A cell is a pair of jit functions that kernels take as constexpr arguments, and its declaration in
seqkernels/cells.py; kernels do not depend on it. Every value is a float32 block. The functions do
not depend on batches, time, pointers or storage types.

    forward(gates_x, gates_h, state, parameters, saved, STAGE) -> (results, saved)
    backward(saved, state, new_state, parameters, grads, STAGE)
        -> (grad_gates_x, beside, grad_state)

Everything but STAGE is a tuple: of G gates, S states, P parameters, K saved values. `results` are
the new states or, in a stage that another follows, only what the product of that one reads;
`grads` are their whole gradients. `beside` are columns of grad_gates_h: gradients of the separate
gates, then of the parameters. grad_state leaves out what flows through the products; the gradients
from several stages are added up.
() stands for what a cell does not read: gates_h of other stages, saved values that are not kept,
states that its backward does not declare, and h in the forward of a cell with `uses_h=False`, whose
grad_state[0] must be 0.0. A stage returns the saved values in its `saves`, the gates in its
`grads`, and of `beside` the separate gates among these and its `parameters`, each in that order.
"""

from collections.abc import Callable
from dataclasses import dataclass

import triton
import triton.language as tl


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)).

    Within 4 units in the last place where x >= -87, for an exponential that is within 2.5; below
    that, the result stays under 2^-125.
    """
    return 1.0 / (1.0 + tl.exp(-x))


@triton.jit
def tanh(x):
    """The hyperbolic tangent, within 2 units in the last place; that of -0 is +0.

    2 sigmoid(2x) - 1 cancels near zero; the polynomial there is that of Cephes' tanhf.
    """
    z = x * x
    p = -5.70498872745e-3 * z + 2.06390887954e-2
    p = p * z - 5.37397155531e-2
    p = p * z + 1.33314422036e-1
    p = p * z - 3.33332819422e-1
    near = p * z * x + x
    magnitude = tl.abs(x)
    far = 1.0 - 2.0 / (tl.exp(2.0 * magnitude) + 1.0)
    far = tl.where(x < 0.0, -far, far)
    return tl.where(magnitude < 0.625, near, far)


@triton.jit
def relu(x):
    """The larger of x and 0; a NaN passes through, as in torch."""
    return tl.where(x < 0.0, 0.0, x)


@triton.jit
def positive(y):
    """1 where y > 0, else 0: the derivative of relu written in its result."""
    return tl.where(y > 0.0, 1.0, 0.0)


@triton.jit
def sigmoid_grad(y):
    """The derivative of sigmoid written in its result."""
    return y * (1.0 - y)


@triton.jit
def tanh_grad(y):
    """The derivative of tanh written in its result."""
    return 1.0 - y * y


@triton.jit
def lstm_forward(gates_x, gates_h, state, parameters, saved, STAGE: tl.constexpr):
    """Gates i, f, g, o; states h, c."""
    i = sigmoid(gates_x[0] + gates_h[0])
    f = sigmoid(gates_x[1] + gates_h[1])
    g = tanh(gates_x[2] + gates_h[2])
    o = sigmoid(gates_x[3] + gates_h[3])
    c = f * state[1] + i * g
    return (o * tanh(c), c), (i, f, g, o)


@triton.jit
def lstm_backward(saved, state, new_state, parameters, grads, STAGE: tl.constexpr):
    """The gradient of `lstm_forward`."""
    i, f, g, o = saved
    grad_h = grads[0]
    tanh_c = tanh(new_state[1])
    grad_c = grads[1] + grad_h * o * tanh_grad(tanh_c)
    grad_gates_x = (
        grad_c * g * sigmoid_grad(i),
        grad_c * state[1] * sigmoid_grad(f),
        grad_c * i * tanh_grad(g),
        grad_h * tanh_c * sigmoid_grad(o),
    )
    return grad_gates_x, (), (0.0, grad_c * f)


@triton.jit
def gru_forward(gates_x, gates_h, state, parameters, saved, STAGE: tl.constexpr):
    """Gates r, z, n; state h; the reset gate acts after the product."""
    r = sigmoid(gates_x[0] + gates_h[0])
    z = sigmoid(gates_x[1] + gates_h[1])
    n = tanh(gates_x[2] + r * gates_h[2])
    return (n + z * (state[0] - n),), (r, z, n, gates_h[2])


@triton.jit
def gru_backward(saved, state, new_state, parameters, grads, STAGE: tl.constexpr):
    """The gradient of `gru_forward`; n is separate."""
    r, z, n, hn = saved
    grad_h = grads[0]
    grad_n = grad_h * (1.0 - z) * tanh_grad(n)
    grad_gates_x = (
        grad_n * hn * sigmoid_grad(r),
        grad_h * (state[0] - n) * sigmoid_grad(z),
        grad_n,
    )
    return grad_gates_x, (grad_n * r,), (grad_h * z,)


@triton.jit
def gru_reset_before_forward(gates_x, gates_h, state, parameters, saved, STAGE: tl.constexpr):
    """Gates r, z, n; state h; the product of the second stage reads r * h."""
    if STAGE == 0:
        r = sigmoid(gates_x[0] + gates_h[0])
        z = sigmoid(gates_x[1] + gates_h[1])
        return (r * state[0],), (r, z)
    else:
        n = tanh(gates_x[2] + gates_h[2])
        return (n + saved[1] * (state[0] - n),), (n,)


@triton.jit
def gru_reset_before_backward(saved, state, new_state, parameters, grads, STAGE: tl.constexpr):
    """The gradient of `gru_reset_before_forward`."""
    r, z, n = saved
    grad = grads[0]
    if STAGE == 1:
        grad_z = grad * (state[0] - n) * sigmoid_grad(z)
        return (grad_z, grad * (1.0 - z) * tanh_grad(n)), (), (grad * z,)
    else:
        return (grad * state[0] * sigmoid_grad(r),), (), (grad * r,)


@triton.jit
def rnn_tanh_forward(gates_x, gates_h, state, parameters, saved, STAGE: tl.constexpr):
    """One gate, state h."""
    return (tanh(gates_x[0] + gates_h[0]),), ()


@triton.jit
def rnn_tanh_backward(saved, state, new_state, parameters, grads, STAGE: tl.constexpr):
    """The gradient of `rnn_tanh_forward`."""
    return (grads[0] * tanh_grad(new_state[0]),), (), (0.0,)


@triton.jit
def rnn_relu_forward(gates_x, gates_h, state, parameters, saved, STAGE: tl.constexpr):
    """One gate, state h."""
    return (relu(gates_x[0] + gates_h[0]),), ()


@triton.jit
def rnn_relu_backward(saved, state, new_state, parameters, grads, STAGE: tl.constexpr):
    """The gradient of `rnn_relu_forward`."""
    return (grads[0] * positive(new_state[0]),), (), (0.0,)


@dataclass(frozen=True)
class CellFunctions:
    """The jit functions of a cell; see the top of this file."""

    forward: Callable
    backward: Callable


FUNCTIONS: dict[str, CellFunctions] = {
    "lstm": CellFunctions(lstm_forward, lstm_backward),
    "gru": CellFunctions(gru_forward, gru_backward),
    "gru_reset_before": CellFunctions(gru_reset_before_forward, gru_reset_before_backward),
    "rnn_tanh": CellFunctions(rnn_tanh_forward, rnn_tanh_backward),
    "rnn_relu": CellFunctions(rnn_relu_forward, rnn_relu_backward),
}

"""The pointwise mathematics of every cell: the Triton twin of csrc/cells.h, same names, same order.

A cell is a handful of jit functions that a kernel takes as constexpr arguments, so a new cell with
the signatures below needs no new kernel. Every value is a float32 block. The functions know nothing
of batches, time, pointers or storage types.

    forward(gates_x, gates_h, h, c) -> (new_h, new_c, saved)
    backward(saved, h, c, new_h, new_c, grad_h, grad_c)
        -> (grad_gates_x, grad_gates_hn, grad_prev_h, grad_prev_c)

gates_x, gates_h and grad_gates_x are tuples of G blocks, saved is a tuple of K. (h, c) is the
previous state; grad_h and grad_c are the whole gradients of the new state; grad_prev_h leaves out
what flows through the recurrent product. What a cell does not have is passed and returned as any
block.
`gru_reset_before` has a product inside its step and therefore four functions of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass

import triton
import triton.language as tl


@triton.jit
def sigmoid(x):
    """1 / (1 + exp(-x)).

    Within 4 units in the last place where x >= -87, for an exponential that is within 2.5; below,
    what is given stays under 2^-125.
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
def lstm_forward(gates_x, gates_h, h, c):
    """Gates i, f, g, o; state (h, c)."""
    i = sigmoid(gates_x[0] + gates_h[0])
    f = sigmoid(gates_x[1] + gates_h[1])
    g = tanh(gates_x[2] + gates_h[2])
    o = sigmoid(gates_x[3] + gates_h[3])
    new_c = f * c + i * g
    return o * tanh(new_c), new_c, (i, f, g, o)


@triton.jit
def lstm_backward(saved, h, c, new_h, new_c, grad_h, grad_c):
    """The gradient of `lstm_forward`."""
    i, f, g, o = saved
    tanh_c = tanh(new_c)
    grad = grad_c + grad_h * o * tanh_grad(tanh_c)
    grad_gates_x = (
        grad * g * sigmoid_grad(i),
        grad * c * sigmoid_grad(f),
        grad * i * tanh_grad(g),
        grad_h * tanh_c * sigmoid_grad(o),
    )
    return grad_gates_x, grad, tl.zeros_like(grad), grad * f


@triton.jit
def gru_forward(gates_x, gates_h, h, c):
    """Gates r, z, n; state h; the reset gate acts after the product."""
    r = sigmoid(gates_x[0] + gates_h[0])
    z = sigmoid(gates_x[1] + gates_h[1])
    n = tanh(gates_x[2] + r * gates_h[2])
    return n + z * (h - n), c, (r, z, n, gates_h[2])


@triton.jit
def gru_backward(saved, h, c, new_h, new_c, grad_h, grad_c):
    """The gradient of `gru_forward`; grad_gates_hn are the n columns of grad_gates_h."""
    r, z, n, hn = saved
    grad_n = grad_h * (1.0 - z) * tanh_grad(n)
    grad_gates_x = (
        grad_n * hn * sigmoid_grad(r),
        grad_h * (h - n) * sigmoid_grad(z),
        grad_n,
    )
    return grad_gates_x, grad_n * r, grad_h * z, grad_c


@triton.jit
def gru_reset_before_reset(gates_x_r, gates_x_z, gates_h_r, gates_h_z, h):
    """First stage: (r, z, r * h)."""
    r = sigmoid(gates_x_r + gates_h_r)
    return r, sigmoid(gates_x_z + gates_h_z), r * h


@triton.jit
def gru_reset_before_update(gates_x_n, gates_h_n, h, z):
    """Second stage, after the product with r * h: (n, new_h)."""
    n = tanh(gates_x_n + gates_h_n)
    return n, n + z * (h - n)


@triton.jit
def gru_reset_before_update_backward(z, n, h, grad_h):
    """The gradients of the z and n columns, and of h through the update alone."""
    grad_z = grad_h * (h - n) * sigmoid_grad(z)
    return grad_z, grad_h * (1.0 - z) * tanh_grad(n), grad_h * z


@triton.jit
def gru_reset_before_reset_backward(r, h, grad_rh):
    """From grad_rh = U_n^T grad_n: the gradient of the r column, and what it adds to that of h."""
    return grad_rh * h * sigmoid_grad(r), grad_rh * r


@triton.jit
def rnn_tanh_forward(gates_x, gates_h, h, c):
    """One gate, state h."""
    return tanh(gates_x[0] + gates_h[0]), c, ()


@triton.jit
def rnn_tanh_backward(saved, h, c, new_h, new_c, grad_h, grad_c):
    """The gradient of `rnn_tanh_forward`."""
    grad = grad_h * tanh_grad(new_h)
    return (grad,), grad, tl.zeros_like(grad), grad_c


@triton.jit
def rnn_relu_forward(gates_x, gates_h, h, c):
    """One gate, state h."""
    return relu(gates_x[0] + gates_h[0]), c, ()


@triton.jit
def rnn_relu_backward(saved, h, c, new_h, new_c, grad_h, grad_c):
    """The gradient of `rnn_relu_forward`."""
    grad = grad_h * positive(new_h)
    return (grad,), grad, tl.zeros_like(grad), grad_c


@dataclass(frozen=True)
class CellFunctions:
    """The jit functions of a pointwise cell, and what its kernels carry.

    Attributes:
        forward, backward: see the top of this file.
        carries: what a sequence kernel keeps in float32 between steps: "c", "h" or "" (nothing).
    """

    forward: Callable
    backward: Callable
    carries: str


FUNCTIONS: dict[str, CellFunctions] = {
    "lstm": CellFunctions(lstm_forward, lstm_backward, carries="c"),
    "gru": CellFunctions(gru_forward, gru_backward, carries="h"),
    "rnn_tanh": CellFunctions(rnn_tanh_forward, rnn_tanh_backward, carries=""),
    "rnn_relu": CellFunctions(rnn_relu_forward, rnn_relu_backward, carries=""),
}

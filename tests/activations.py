"""tanh and sigmoid alone: where they are tried, and how far off they are, in last places.

The unit in the last place of a result is the distance of its dtype's numbers at the exact value, so
that correct rounding is off by half a unit at most.
"""

from collections.abc import Callable

import mpmath
import torch
from torch import Tensor

# (digits of the significand, smallest exponent of 2, largest, below which sigmoid is tiny)
FORMATS = {torch.float32: (24, -149, 127, -87.0), torch.float64: (53, -1074, 1023, -708.0)}


def inputs(dtype: torch.dtype, dense: int) -> Tensor:
    """Finite values of either sign, 0 and subnormal ones among them.

    Every power of two with three values above it, `dense` values up to 40, and those around the end
    of what sigmoid can give.
    """
    _, smallest, largest, tiny = FORMATS[dtype]
    generator = torch.Generator().manual_seed(0)
    above = 1 + torch.rand(4, generator=generator, dtype=torch.float64)
    above[0] = 1.0
    powers = torch.arange(smallest, largest + 1).double().unsqueeze(1)
    spread = torch.ldexp(above, powers).flatten()
    near = torch.linspace(0.0, 40.0, dense, dtype=torch.float64)
    ends = torch.linspace(1.3 * tiny, 0.9 * tiny, dense // 20, dtype=torch.float64)
    x = torch.cat((spread, near, ends)).to(dtype)
    return torch.cat((x, -x))


def ulps(name: str, x: Tensor, found: Tensor) -> Tensor:
    """Units in the last place between `found` and tanh or sigmoid of x."""
    digits, smallest, *_ = FORMATS[x.dtype]
    if x.dtype == torch.float32:
        small = torch.exp(-x.double().abs())
        exact = torch.where(x < 0, small, 1.0) / (1 + small)
        exact = torch.tanh(x.double()) if name == "tanh" else exact
        exponent = torch.frexp(exact)[1].clamp(min=smallest + digits)
        return torch.ldexp((found.double() - exact).abs(), (digits - exponent).double())
    pairs = zip(x.tolist(), found.tolist(), strict=True)
    with mpmath.workprec(160):
        return torch.tensor([_ulps(name, *pair, digits, smallest) for pair in pairs])


def _ulps(name: str, x: float, found: float, digits: int, smallest: int) -> float:
    exact = mpmath.tanh(x) if name == "tanh" else 1 / (1 + mpmath.exp(-mpmath.mpf(x)))
    exponent = max(mpmath.frexp(exact)[1], smallest + digits)
    return float(mpmath.ldexp(abs(exact - found), digits - exponent))


def check(run: Callable, dtype: torch.dtype, bounds: dict[str, float], dense: int) -> None:
    """Assert the bounds, in units in the last place, and what is given at the ends.

    Args:
        run: from x [n] to {"tanh": tanh(x), "sigmoid": sigmoid(x)}.
        dtype: of x, float32 or float64.
        bounds: of both functions.
        dense: values between 0 and 40.
    """
    *_, largest, tiny = FORMATS[dtype]
    x = inputs(dtype, dense)
    found = run(x)
    assert (found["tanh"].abs() <= 1).all() and (found["tanh"] * x.sign() >= 0).all()
    worst = ulps("tanh", x, found["tanh"]).max().item()
    assert worst <= bounds["tanh"], f"tanh is off by {worst} units in the last place"
    # Below `tiny` the exact result is less than this, and so is what is given.
    assert (found["sigmoid"] >= 0).all()
    assert (found["sigmoid"][x < tiny] <= 2.0 ** (2 - largest)).all()
    x, sigmoid = x[x >= tiny], found["sigmoid"][x >= tiny]
    worst = ulps("sigmoid", x, sigmoid).max().item()
    assert worst <= bounds["sigmoid"], f"sigmoid is off by {worst} units in the last place"
    found = run(torch.tensor([0.0, -0.0, torch.inf, -torch.inf, torch.nan], dtype=dtype))
    assert found["tanh"][:4].tolist() == [0, 0, 1, -1]
    assert found["sigmoid"][:3].tolist() == [0.5, 0.5, 1]
    assert 0 <= found["sigmoid"][3] <= 2.0 ** (2 - largest)
    assert found["tanh"][4].isnan() and found["sigmoid"][4].isnan()

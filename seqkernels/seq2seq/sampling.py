"""How the teacher forcing ratio falls during training: scheduled sampling."""

import math

from .checks import check_choice, check_integer, check_probability

DECAYS = ("linear", "exponential", "inverse_sigmoid")


def teacher_forcing_ratio(
    step: int, decay: str = "inverse_sigmoid", *, rate: float, floor: float = 0.0
) -> float:
    """The share of true symbols at a step of training (Bengio et al. 2015, section 2.4).

    Args:
        step: steps done so far, i.
        decay: `linear`, 1 - rate i; `exponential`, rate ** i with rate < 1; `inverse_sigmoid`,
            rate / (rate + exp(i / rate)) with rate >= 1.
        rate: the constant in these formulas.
        floor: the ratio never falls below this.

    Raises:
        TypeError: a number of another type.
        ValueError: unknown decay, a number out of range, or a rate that the formula does not allow.
    """
    check_choice("decay", decay, DECAYS)
    check_integer("step", step, 0)
    check_probability("floor", floor)
    if isinstance(rate, bool) or not isinstance(rate, int | float):
        raise TypeError(f"rate: expected a number, got {rate!r}")
    allowed = 0.0 <= rate <= 1e300
    if decay == "linear":
        ratio = 1.0 - float(rate) * step if allowed else 0.0
    elif decay == "exponential":
        allowed = 0.0 < rate < 1.0
        ratio = rate**step if allowed else 0.0
    else:
        allowed = allowed and rate >= 1.0
        # Beyond 700 the exponential leaves the range of a double and the ratio is 0 in any case.
        ratio = rate / (rate + math.exp(min(step / rate, 700.0))) if allowed else 0.0
    if not allowed:
        raise ValueError(f"decay {decay!r} does not allow rate={rate}")
    return min(1.0, max(floor, ratio))

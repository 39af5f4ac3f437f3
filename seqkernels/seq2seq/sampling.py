"""How the teacher forcing ratio falls during training: scheduled sampling."""

import math

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
        ValueError: unknown decay, or a rate that the formula does not allow.
    """
    if decay not in DECAYS:
        raise ValueError(f"unknown decay {decay!r}; expected one of {', '.join(DECAYS)}")
    if decay == "linear":
        allowed, ratio = rate >= 0.0, 1.0 - rate * step
    elif decay == "exponential":
        allowed = 0.0 < rate < 1.0
        ratio = rate**step if allowed else 0.0
    else:
        allowed = rate >= 1.0
        # Beyond 700 the exponential leaves the range of a double and the ratio is 0 in any case.
        ratio = rate / (rate + math.exp(min(step / rate, 700.0))) if allowed else 0.0
    if not allowed:
        raise ValueError(f"decay {decay!r} does not allow rate={rate}")
    return min(1.0, max(floor, ratio))

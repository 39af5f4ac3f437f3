"""The gate before the clock: a contestant whose numbers are wrong gets no time."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import torch
from torch import Tensor

from .cases import Case
from .contestants import oracle
from .workload import Workload, results

# Bytes that the oracle's float64 graph may hold; longer cases are checked on fewer steps.
_ORACLE_BYTES = 8 * 2**30
# Tensors [N, G*H] or their equal that the graph keeps per step.
_ORACLE_KEPT = 6


def _tolerance():
    """tests/tolerance.py, the project's one rule, loaded by its path: `tests` is no package."""
    path = Path(__file__).parents[1] / "tests" / "tolerance.py"
    spec = spec_from_file_location("seqkernels_tolerance", path)
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


tolerance = _tolerance()


def checked_length(case: Case) -> int:
    """Steps on which a case is checked: all, unless float64 would not fit."""
    width = case.gates * case.hidden_size * case.num_layers * (1 + case.bidirectional)
    per_step = 8 * _ORACLE_KEPT * case.batch * width
    return max(1, min(case.length, _ORACLE_BYTES // per_step))


def expected(case: Case, device: torch.device, mode: str) -> dict[str, Tensor]:
    """What the package's reference gives in float64, by name."""
    work = Workload(case, device, torch.float64, checked_length(case))
    prepared = oracle(work, mode)
    return results(prepared.call(), prepared.parameters)


def errors(found: dict[str, Tensor], reference: dict[str, Tensor]) -> dict[str, float]:
    """||x - reference|| / ||reference|| of every tensor; not finite counts as infinite."""
    return {
        name: tolerance.relative_error(found[name], value)
        if torch.isfinite(found[name]).all()
        else float("inf")
        for name, value in reference.items()
        if name in found
    }


def verdict(ours: dict[str, float], torchs: dict[str, float], dtype: torch.dtype) -> str | None:
    """Why a contestant fails the rule of tests/tolerance.py, or None.

    Args:
        ours: its errors, by tensor.
        torchs: the errors of torch.nn in the same dtype.
        dtype: of the case.
    """
    floor = tolerance.FLOOR[dtype]
    missing = [name for name in torchs if name not in ours]
    if missing:
        return f"no {', '.join(missing)} to check"
    for name, error in ours.items():
        limit = 2 * torchs[name] + floor
        if not error <= limit:
            return f"wrong {name}: error {error:.2e}, allowed {limit:.2e}"
    return None


def oracle_verdict(torchs: dict[str, float], dtype: torch.dtype) -> str | None:
    """Whether torch.nn is far from the oracle: then one of the two computes another model."""
    # The rounding of a long recurrence, generously; a different model is off by about 1.
    limit = 1e4 * tolerance.FLOOR[dtype] if dtype.itemsize > 2 else 0.2
    name = max(torchs, key=torchs.get)
    if torchs[name] > limit:
        return f"torch.nn and the reference disagree: {name} by {torchs[name]:.2e}"
    return None

"""Every case, mode and contestant of the chosen suites as a pytest-benchmark benchmark."""

import pytest


def test_case(measurement, contestant, recorded, measured, benchmark):
    """Check a contestant and report its interleaved samples; a refusal is shown as a skip."""
    rows, times = measured(*measurement)
    row = rows[contestant]
    if row["refused"]:
        # A wrong result is a failure; what a backend does not offer is not.
        if row["error"] is not None:
            pytest.fail(row["refused"])
        pytest.skip(row["refused"])
    benchmark.extra_info.update({k: row[k] for k in ("detail", "error", "first_call_s")})
    benchmark.extra_info["contended"] = times[contestant].contended
    recorded.samples = iter(times[contestant].samples)
    benchmark.pedantic(recorded.call, rounds=len(times[contestant].samples))

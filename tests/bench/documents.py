"""A result document with round numbers, made for the tests."""

from dataclasses import replace

from bench import roofline
from bench.cases import Case
from bench.contestants import BASELINE, OURS

CASE = Case("lstm", length=10, batch=4, input_size=8, hidden_size=16)


def contestant(name, median=None, refused=None, **fields):
    times = None
    if median is not None:
        times = {
            "median": median,
            "p20": 0.9 * median,
            "p80": 1.1 * median,
            "samples": 9,
            "repeats": 2,
            "discarded": 1,
            "contended": False,
        }
    row = {
        "name": name,
        "label": None,
        "detail": None,
        "refused": refused,
        "error": {"output": 1e-7},
        "time_s": times,
        "first_call_s": 0.01,
        "peak_memory_bytes": 2**20,
    }
    return row | fields


def result(*rows, case=CASE, mode="training"):
    return {
        "case": case.to_json(),
        "mode": mode,
        "checked_length": case.length,
        "cost": roofline.cost(case, mode).to_json(),
        "floor_s": 1e-4,
        "contestants": list(rows),
    }


def document(*results, suite="cpu"):
    return {
        "schema": 1,
        "suite": suite,
        "why": "to test the reports",
        "device": {
            "type": "cpu",
            "name": "Test CPU (R) 9000",
            "threads": 2,
            "capability": "AVX512",
            "driver": None,
            "calibration": {"flops": {"float32": 1e11}, "bytes": 1e10},
        },
        "versions": {"python": "3.11", "torch": "2.13", "seqkernels": "0.1", "commit": "abc"},
        "settings": {
            "time": "2026-01-02T03:04:05+00:00",
            "quick": False,
            "rounds": 9,
            "sample_s": 0.005,
            "budget_s": 8.0,
            "wait_s": 0.3,
            "openmp": {},
        },
        "results": list(results),
    }


def example():
    """Two sizes in two modes: ours is 2x, 1.6x and 0.5x as quick, and refuses once."""
    wide = replace(CASE, hidden_size=32)
    return document(
        result(contestant(BASELINE, 2e-3), contestant(OURS, 1e-3), mode="inference"),
        result(contestant(BASELINE, 8e-3), contestant(OURS, 5e-3)),
        result(contestant(BASELINE, 2e-3), contestant(OURS, 4e-3), case=wide, mode="inference"),
        result(contestant(BASELINE, 8e-3), contestant(OURS, refused="no such cell"), case=wide),
    )

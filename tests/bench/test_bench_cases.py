"""The suites: distinct cases, a reason for each, and the shapes that the targets speak of."""

from dataclasses import replace

import pytest
import torch

from bench.cases import CPU_SHAPES, DEVICES, MODES, SUITES, Case, select
from bench.contestants import EXTRA, contestants
from bench.targets import target

NAMES = [
    "cells",
    "cpu",
    "cudnn_persistent",
    "decode",
    "headline",
    "inference_latency",
    "large",
    "layers",
    "odd_sizes",
    "small_hidden",
    "standard",
    "variable_length",
]


def test_every_suite_is_there():
    assert sorted(SUITES) == NAMES


@pytest.mark.parametrize("suite", SUITES.values(), ids=SUITES)
def test_suite(suite):
    ids = [case.id for case in suite.cases]
    assert len(set(ids)) == len(ids)
    assert suite.why.endswith(".") and len(suite.why) > 40
    for case in suite.cases:
        assert set(case.modes) <= set(MODES) and set(case.devices) <= set(DEVICES)
        # TF32 and half-precision cuDNN exist on a GPU alone.
        assert "cpu" not in case.devices or case.dtype == "float32"


def test_most_suites_have_the_compiled_loop():
    for suite in SUITES.values():
        assert set(suite.extra) <= set(EXTRA)
        assert suite.extra_on("cuda") == suite.extra
        # The two that take minutes.
        assert suite.extra_on("cpu") == (() if suite.name in ("cpu", "headline") else ("compile",))


def test_cpu_suite_has_the_shapes_of_the_targets():
    shapes = {
        (case.cell, case.rows, (case.length, case.batch, case.input_size, case.hidden_size))
        for case in SUITES["cpu"].cases
    }
    for shape in CPU_SHAPES:
        for cell in ("lstm", "gru", "rnn_tanh"):
            assert (cell, "padded", shape) in shapes
        for cell in ("lstm", "gru"):
            assert ((cell, "packed", shape) in shapes) == (shape[1] > 1)


def test_headline_cases_have_two_lengths_and_targets():
    cases = SUITES["headline"].on("cuda")
    assert len(cases) == 32 and {case.length for case in cases} == {512, 128}
    assert [replace(c, length=128) for c in cases[:16]] == list(cases[16:])
    inference = [target("headline", case.to_json(), "inference", "cuda") for case in cases[:16]]
    assert inference == [1.3] * 6 + [2.5] * 8 + [10.0, 1.3]
    assert target("headline", cases[0].to_json(), "training", "cuda") == 1.2


def test_only_the_named_backends_run_beside_the_dispatched_one():
    case, device = SUITES["headline"].cases[0], torch.device("cuda")
    names = [c.name for c in contestants(case, device, backends=SUITES["headline"].backends)]
    assert names == ["torch.nn", "seqkernels", "seqkernels.stepwise"]
    assert "seqkernels.triton" in [c.name for c in contestants(case, device)]


def test_lengths_fall_from_all_steps_to_a_fifth():
    case = Case("gru", 50, 5, 8, 8, rows="packed")
    assert case.lengths() == [50, 40, 30, 20, 10]
    assert Case("gru", 3, 1, 8, 8, rows="packed").lengths() == [3]
    assert Case("gru", 7, 3, 8, 8).lengths() == [7, 7, 7]


def test_select():
    assert [s.name for s in select(["cpu", "cells", "cpu"], "cpu")] == ["cpu", "cells"]
    assert SUITES["large"] not in select(["all"], "cpu")
    with pytest.raises(ValueError, match="unknown suite 'gpu'; suites: cpu,"):
        select(["gpu"], "cpu")
    with pytest.raises(ValueError, match="'large' has no case on cpu"):
        select(["large"], "cpu")

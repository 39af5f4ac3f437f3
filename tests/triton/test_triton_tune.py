"""Measured plans: what is measured, what is kept, and that a bad file does no harm."""

import json
from dataclasses import asdict

import pytest
import torch

from seqkernels.triton import tune
from seqkernels.triton.plan import Plan

CPU = torch.device("cpu")
PLANS = tuple(Plan("sliced", 16, 16 * i, 16) for i in range(1, 7))
KEY = ("lstm", "forward", "torch.float16", "ieee", 16, 512)


class Timer:
    """Runs the function once and says how long it took: what `milliseconds` has for its plan."""

    def __init__(self, **milliseconds):
        self.milliseconds = {int(k[1:]): v for k, v in milliseconds.items()}
        self.ran = []

    def run(self, plan):
        self.ran.append(PLANS.index(plan))

    def __call__(self, function):
        function()
        return self.milliseconds.get(self.ran[-1], 9.0)


@pytest.fixture
def folder(monkeypatch, tmp_path):
    """Measuring is on, and nothing is known."""
    monkeypatch.setenv("SEQKERNELS_TRITON_TUNE", "1")
    monkeypatch.setenv("SEQKERNELS_CACHE_DIR", str(tmp_path / "plans"))
    monkeypatch.setattr(tune, "_found", {})
    return tmp_path / "plans"


def choose(timer, key=KEY, device=CPU):
    return tune.choose(PLANS, key, timer.run, device, timer)


def forget():
    tune._found.clear()


def test_off_is_the_first_estimate_and_measures_nothing(monkeypatch, folder):
    monkeypatch.delenv("SEQKERNELS_TRITON_TUNE")
    timer = Timer(p2=1.0)
    assert choose(timer) == PLANS[0]
    assert not timer.ran and not folder.exists()


def test_the_fastest_of_a_few_is_taken_and_kept(folder):
    timer = Timer(p2=1.0, p5=0.1)
    assert choose(timer) == PLANS[2]
    assert timer.ran == list(range(tune.TUNED))
    assert choose(timer) == PLANS[2]
    forget()  # as another process
    assert choose(timer) == PLANS[2]
    assert len(timer.ran) == tune.TUNED
    (path,) = folder.iterdir()
    assert json.loads(path.read_text()) == {" ".join(map(str, KEY)): asdict(PLANS[2])}
    assert torch.__version__ in path.name and "triton" in path.name


def test_shapes_are_kept_beside_each_other(folder):
    choose(Timer(p1=1.0))
    forget()
    other = (*KEY[:-1], 768)
    choose(Timer(p3=1.0), other)
    forget()
    assert choose(Timer()) == PLANS[1]
    assert choose(Timer(), other) == PLANS[3]


def test_of_equals_the_better_estimate_is_taken(folder):
    assert choose(Timer()) == PLANS[0]


@pytest.mark.parametrize("text", ["{", "[]", "", "\x00", '{"lstm": 3}'])
def test_a_damaged_file_is_ignored_with_a_warning_and_replaced(folder, text):
    choose(Timer(p1=1.0))
    (path,) = folder.iterdir()
    path.write_text(text)
    forget()
    timer = Timer(p3=1.0)
    if text.startswith('{"'):  # sound, but it does not know the shape
        assert choose(timer) == PLANS[3]
    else:
        with pytest.warns(RuntimeWarning, match="is ignored"):
            assert choose(timer) == PLANS[3]
    forget()
    assert choose(timer) == PLANS[3] and len(timer.ran) == tune.TUNED


def test_a_plan_that_is_no_candidate_is_measured_again(folder):
    choose(Timer(p1=1.0))
    (path,) = folder.iterdir()
    foreign = asdict(Plan("persistent", 4096, 4096, 4096))
    path.write_text(json.dumps({" ".join(map(str, KEY)): foreign}))
    forget()
    assert choose(Timer(p2=1.0)) == PLANS[2]


def test_nothing_is_measured_while_a_stream_is_captured(monkeypatch, folder):
    cuda, timer = torch.device("cuda", 0), Timer(p2=1.0)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H100 80GB/HBM3")
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    tune._file_name.cache_clear()
    assert choose(timer, device=cuda) == PLANS[0]
    assert not timer.ran and not folder.exists()
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    assert choose(timer, device=cuda) == PLANS[2]
    (path,) = folder.iterdir()
    assert "NVIDIA-H100-80GB-HBM3" in path.name
    # What is known is used in a capture too.
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    forget()
    assert choose(timer, device=cuda) == PLANS[2]
    tune._file_name.cache_clear()


def test_a_folder_that_cannot_be_written_costs_a_warning(folder):
    folder.parent.mkdir(exist_ok=True)
    folder.write_text("a file")
    with pytest.warns(RuntimeWarning, match="not kept"):
        assert choose(Timer(p1=1.0)) == PLANS[1]


def test_a_file_is_replaced_as_a_whole(monkeypatch, folder):
    choose(Timer(p1=1.0))
    (path,) = folder.iterdir()
    before = path.read_text()

    def fail(*_):
        raise OSError("no space")

    with monkeypatch.context() as patch, pytest.warns(RuntimeWarning, match="no space"):
        patch.setattr(tune.os, "replace", fail)
        choose(Timer(p2=1.0), (*KEY[:-1], 1024))
    assert [p.name for p in folder.iterdir()] == [path.name]
    assert path.read_text() == before


def test_a_plan_without_room_is_passed_over(folder):
    from triton.runtime.errors import OutOfResources

    class Narrow(Timer):
        def run(self, plan):
            super().run(plan)
            if plan == PLANS[1]:
                raise OutOfResources(300000, 232448, "shared memory")

    with pytest.warns(RuntimeWarning, match="shared memory"):
        assert choose(Narrow(p1=0.1, p3=1.0)) == PLANS[3]


def test_the_folder_follows_the_platform(monkeypatch):
    monkeypatch.delenv("SEQKERNELS_CACHE_DIR", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    monkeypatch.setattr(tune.sys, "platform", "linux")
    assert tune.cache_folder().as_posix() == "/somewhere/seqkernels"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert tune.cache_folder().parts[-2:] == (".cache", "seqkernels")
    monkeypatch.setattr(tune.sys, "platform", "darwin")
    assert tune.cache_folder().parts[-3:] == ("Library", "Caches", "seqkernels")
    monkeypatch.setenv("LOCALAPPDATA", "/local")
    monkeypatch.setattr(tune.sys, "platform", "win32")
    assert tune.cache_folder().parts[-2:] == ("local", "seqkernels")

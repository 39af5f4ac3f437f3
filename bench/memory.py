"""Peak memory of one call beyond its weights and input, once everything is loaded.

On a CPU a clean child process makes the call and reads the peak of its resident memory from the
kernel. The children are forked from a server that has imported everything but computed nothing.
"""

import ctypes
import gc
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from .cases import Case

_STATUS = Path("/proc/self/status")
# Written to clear_refs it sets the peak (VmHWM) back to the present resident size.
_RESET_PEAK = "5"
# Of glibc's mallopt. Once set it no longer grows, so larger blocks are mapped one by one and given
# back when freed. Else they leave holes in the heap, several MB that differ from run to run: the
# same cell loop took 5 to 14 MB, while its tensors took 4.3.
_MMAP_THRESHOLD, _MMAP_BYTES = -3, 128 << 10


def peak(
    case: Case, mode: str, name: str, device: torch.device, extra: tuple[str, ...] = ()
) -> int | None:
    """Bytes that a contestant needs at its peak beyond weights and input; None if not known.

    Args:
        case: what is run.
        mode: "inference" or "training".
        name: of the contestant that runs it.
        device: where.
        extra: contestants beside the usual ones; see `contestants.contestants`.
    """
    if device.type == "cuda":
        return _peak_cuda(case, mode, name, device, extra)
    if not _STATUS.exists():
        return None
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["bench.contestants"])
    with ProcessPoolExecutor(1, mp_context=context) as pool:
        child = pool.submit(_peak_cpu, case, mode, name, device, extra, torch.get_num_threads())
        return child.result()


def _call(case: Case, mode: str, name: str, device: torch.device, extra: tuple[str, ...]):
    from .contestants import contestants
    from .workload import Workload

    (contestant,) = (c for c in contestants(case, device, extra) if c.name == name)
    return contestant.prepare(Workload(case, device), mode).call


def _peak_cpu(case, mode, name, device, extra, threads) -> int:
    libc = ctypes.CDLL(None)
    libc.mallopt(_MMAP_THRESHOLD, _MMAP_BYTES)
    torch.set_num_threads(threads)
    call = _call(case, mode, name, device, extra)
    # Once before: libraries, thread stacks and generated code are not what a step needs.
    call()
    gc.collect()
    libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text(_RESET_PEAK)
    before = _kilobytes("VmRSS")
    call()
    return max(0, _kilobytes("VmHWM") - before) * 1024


def _kilobytes(field: str) -> int:
    (line,) = (x for x in _STATUS.read_text().splitlines() if x.startswith(f"{field}:"))
    return int(line.split()[1])


def _peak_cuda(case, mode, name, device, extra) -> int:
    call = _call(case, mode, name, device, extra)
    call()
    torch.cuda.synchronize()
    gc.collect()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before

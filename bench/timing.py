"""Interleaved timing of several calls: medians and spread, on a CPU or a GPU.

The contestants of a case take turns, so that a change of clock or a busy neighbour meets them all
alike. On Linux a CPU sample counts only if the kernel's own accounts show that this process hardly
waited for a core; samples that did wait are counted and left out.
"""

import contextlib
import gc
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from seqkernels.ops import gemm

Call = Callable[[], object]

# Share of a sample's time that its threads may have waited for a core.
_MAX_WAIT = 0.02
# With fewer clean samples than this the machine was too busy: the quickest quarter of all is used.
_MIN_CLEAN = 3
# Larger than the L2 cache of any GPU: writing it leaves nothing of the last call behind.
_FLUSH_BYTES = 256 * 2**20


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    Attributes:
        rounds: samples wanted of every contestant.
        sample_s: least duration of one sample; short calls are repeated within it.
        budget_s: time for all contestants of one case and mode, after which three rounds suffice.
        wait_s: how long a CPU sample may wait for other processes to pause.
    """

    rounds: int = 15
    sample_s: float = 0.005
    budget_s: float = 5.0
    wait_s: float = 0.3


QUICK = Effort(rounds=5, sample_s=0.002, budget_s=1.5, wait_s=0.02)
FULL = Effort()


@dataclass(frozen=True)
class Times:
    """Seconds per call.

    Attributes:
        samples: every sample that counts, in the order taken.
        repeats: calls within one sample.
        discarded: samples left out because the machine was busy.
        contended: there were too few clean samples; the quickest quarter of all stands for them.
    """

    samples: tuple[float, ...]
    repeats: int = 1
    discarded: int = 0
    contended: bool = False

    def quantile(self, share: float) -> float:
        """The sample below which a share of all samples lies, between neighbours linearly."""
        ordered = sorted(self.samples)
        place = share * (len(ordered) - 1)
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (place - low) * (ordered[high] - ordered[low])

    def to_json(self) -> dict:
        """Median, p20 and p80 in seconds, and how they were found."""
        return {
            "median": self.quantile(0.5),
            "p20": self.quantile(0.2),
            "p80": self.quantile(0.8),
            "samples": len(self.samples),
            "repeats": self.repeats,
            "discarded": self.discarded,
            "contended": self.contended,
        }


class CpuTimer:
    """Wall-clock time, with the time that this process's threads waited for a core.

    With one thread it is the processor time of that thread: what the call takes on a core of its
    own, whatever else the machine does.
    """

    def __init__(self) -> None:
        self.clock = time.thread_time if torch.get_num_threads() == 1 else time.perf_counter

    def wait(self, limit_s: float) -> None:
        """Wait a little for the other processes of the machine to pause."""
        end = time.perf_counter() + limit_s
        if self.clock is time.thread_time:
            return
        while _running_tasks() > 1 and time.perf_counter() < end:
            time.sleep(0.004)

    def sample(self, call: Call, repeats: int) -> tuple[float, bool]:
        """Seconds per call, and whether the sample is clean."""
        waited = _run_queue_wait()
        start = self.clock()
        for _ in range(repeats):
            call()
        elapsed = self.clock() - start
        alone = _run_queue_wait() - waited < _MAX_WAIT * elapsed
        return elapsed / repeats, alone or self.clock is time.thread_time

    def once(self, call: Call) -> tuple[float, object]:
        """Seconds of one call, and its result."""
        start = time.perf_counter()
        result = call()
        return time.perf_counter() - start, result


class CudaTimer:
    """CUDA events on the current stream, with the L2 cache flushed before every sample."""

    def __init__(self) -> None:
        self._flush = torch.empty(_FLUSH_BYTES, dtype=torch.int8, device="cuda")
        self._start = torch.cuda.Event(enable_timing=True)
        self._end = torch.cuda.Event(enable_timing=True)

    def wait(self, limit_s: float) -> None:
        """Wait for the work already queued."""
        torch.cuda.synchronize()

    def sample(self, call: Call, repeats: int) -> tuple[float, bool]:
        """Seconds per call, and True: nobody else uses the GPU."""
        # The flush also keeps the GPU busy while the host queues the first launches of the call.
        self._flush.zero_()
        self._start.record()
        for _ in range(repeats):
            call()
        self._end.record()
        self._end.synchronize()
        return self._start.elapsed_time(self._end) / 1e3 / repeats, True

    def once(self, call: Call) -> tuple[float, object]:
        """Seconds of one call by the host's clock, compilation and synchronisation included."""
        torch.cuda.synchronize()
        start = time.perf_counter()
        result = call()
        torch.cuda.synchronize()
        return time.perf_counter() - start, result


Timer = CpuTimer | CudaTimer


def timer_for(device: torch.device) -> Timer:
    """The timer of a device type."""
    return CudaTimer() if device.type == "cuda" else CpuTimer()


def interleave(calls: Mapping[str, Call], timer: Timer, effort: Effort) -> dict[str, Times]:
    """Time several calls in turns; they must have run once before.

    Args:
        calls: what to time, by name.
        timer: of the device on which they run.
        effort: when to stop.

    Returns:
        The samples of every call.
    """
    gc.collect()
    repeats = {name: _repeats(call, timer, effort) for name, call in calls.items()}
    clean: dict[str, list[float]] = {name: [] for name in calls}
    busy: dict[str, list[float]] = {name: [] for name in calls}
    order = list(calls)
    start = time.perf_counter()
    rounds = 0
    while True:
        for name in order:
            timer.wait(effort.wait_s)
            calls[name]()  # the caches hold this contestant's data, not its neighbour's
            seconds, is_clean = timer.sample(calls[name], repeats[name])
            (clean if is_clean else busy)[name].append(seconds)
        # Nobody always follows the same neighbour.
        order = order[1:] + order[:1]
        rounds += 1
        if min(map(len, clean.values())) >= effort.rounds:
            break
        if rounds >= _MIN_CLEAN and time.perf_counter() - start > effort.budget_s:
            break
    return {name: times_of(clean[name], busy[name], repeats[name]) for name in calls}


def _repeats(call: Call, timer: Timer, effort: Effort) -> int:
    seconds = min(timer.sample(call, 1)[0] for _ in range(3))
    return max(1, round(effort.sample_s / max(seconds, 1e-7)))


def times_of(clean: list[float], busy: list[float], repeats: int = 1) -> Times:
    """The samples that count, of those taken while this process had its cores and of the others."""
    if len(clean) >= _MIN_CLEAN:
        return Times(tuple(clean), repeats, discarded=len(busy))
    ordered = sorted(clean + busy)
    kept = ordered[: max(1, len(ordered) // 4)]
    return Times(tuple(kept), repeats, discarded=len(ordered) - len(kept), contended=True)


def _run_queue_wait() -> float:
    """Seconds that this process's threads have waited for a core; 0 where it is not known."""
    total = 0
    for task in Path("/proc/self/task").glob("*/schedstat"):
        try:
            total += int(task.read_text().split()[1])
        except (OSError, IndexError):  # the thread has ended
            continue
    return total * 1e-9


def _running_tasks() -> int:
    """Tasks that run or wait for a core on this machine, this one included; 0 if not known."""
    try:
        return int(Path("/proc/loadavg").read_text().split()[3].split("/")[0])
    except (OSError, IndexError, ValueError):
        return 0


def calibrate(device: torch.device, timer: Timer, size: int | None = None) -> dict:
    """What this machine does at best: a large product of every dtype, and a large copy.

    Args:
        device: where.
        timer: of the device.
        size: rows and columns of the product; by default 8192 on a GPU and 2048 on a CPU.

    Returns:
        {"flops": {dtype: operations a second}, "bytes": bytes copied (read and written) a second}.
    """
    cuda = device.type == "cuda"
    size = size or (8192 if cuda else 2048)
    rates = {}
    for name in ("float32", "tf32", "bfloat16", "float16") if cuda else ("float32",):
        dtype = torch.float32 if name == "tf32" else getattr(torch, name)
        a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
        # On a CPU torch's and oneDNN's products, of which neither is always the faster.
        products = (torch.matmul,) if cuda else (torch.matmul, gemm.matmul)
        with precision(name, device), torch.no_grad():
            times = [_best(lambda f=f, a=a, b=b: f(a, b), timer) for f in products]
        rates[name] = 2 * size**3 / min(times)
    source = torch.zeros((2**30 if cuda else 2**26) // 4, device=device)
    target = torch.empty_like(source)
    return {
        "flops": rates,
        "bytes": 2 * source.nbytes / _best(lambda: target.copy_(source), timer),
    }


@contextlib.contextmanager
def precision(dtype: str, device: torch.device) -> Iterator[None]:
    """TF32 on for "tf32" and off otherwise, for cuDNN and for products alike."""
    if device.type != "cuda":
        yield
        return
    rnn, matmul = torch.backends.cudnn.rnn, torch.backends.cuda.matmul
    before = rnn.fp32_precision, matmul.fp32_precision
    rnn.fp32_precision = matmul.fp32_precision = "tf32" if dtype == "tf32" else "ieee"
    try:
        yield
    finally:
        rnn.fp32_precision, matmul.fp32_precision = before


def _best(call: Call, timer: Timer) -> float:
    call()
    return min(timer.sample(call, 3)[0] for _ in range(7))


def threads(count: int | None) -> int:
    """Set the number of CPU threads, by default that of torch, and return it."""
    if count is not None:
        torch.set_num_threads(count)
    return torch.get_num_threads()


def openmp_settings() -> dict[str, str]:
    """The OpenMP variables that were set, as they change CPU times."""
    return {
        name: value
        for name, value in sorted(os.environ.items())
        if name.startswith(("OMP_", "KMP_"))
    }

"""What each call of `make gpu` runs: stages in series, the most telling first. Torch-free."""

import importlib.util
import sys
from dataclasses import dataclass, field

CALLS = ("first", "second", "third")
PYTHON = sys.executable
CUDA, DECODE, TRITON = "tests/cuda", "tests/decode", "tests/triton"
NCU_SECTIONS = ("WarpStateStats", "SourceCounters", "MemoryWorkloadAnalysis", "LaunchStats")
SANITIZED = {"": f"{CUDA}/small_cases.py", "-triton": f"{TRITON}/sanitized.py"}


@dataclass(frozen=True)
class Stage:
    """A module of bench.gpu that a worker runs, or a command.

    Attributes:
        name: of the stage; of a worker's stage, also its module.
        seconds: what it is meant to take: its share of a call is in proportion.
        build: of the worker, "spin" or "release"; empty for a command.
        command: its words. {scratch} is a folder whose files are kept, {out} that of the call's
            files, {minutes} the time that there is.
        environment: beside that of the supervisor.
        silence: seconds after which a silent command counts as hung.
        note: what is said of it beside its result.
        text: of a worker's stage, what the names of its cases must contain.
    """

    name: str
    seconds: float
    build: str = ""
    command: tuple[str, ...] = ()
    environment: dict[str, str] = field(default_factory=dict)
    silence: float = 60
    note: str = ""
    text: str = ""

    @property
    def label(self) -> str:
        """Its name, and the cases that are taken, as a worker is told."""
        return f"{self.name}:{self.text}" if self.text else self.name


def tests(name: str, seconds: float, *paths: str, timeout: int = 30) -> Stage:
    """Tests by pytest: three at a time, and one that hangs is killed and named, where plug-ins are.

    Args:
        name: of the stage and its JUnit file.
        seconds: as in Stage.
        paths: what is run.
        timeout: seconds of one test.
    """
    command = [PYTHON, "-m", "pytest", "-v", "--tb=short", "--require-cuda", *paths]
    command += ["-p", "no:cacheprovider", f"--junitxml={{scratch}}/{name}.xml"]
    # Where the project is developed warnings are errors; here, with any versions, they are not.
    command += ["-o", "filterwarnings=default"]
    plugins = {
        # A test that hangs in the driver answers no signal: its process ends, and another goes on.
        "pytest_timeout": ["--timeout", str(timeout), "--timeout-method", "thread"],
        "xdist": ["-n", "3", "--dist", "worksteal"],
    }
    missing = [plugin for plugin in plugins if importlib.util.find_spec(plugin) is None]
    for plugin, options in plugins.items():
        command += [] if plugin in missing else options
    note = f"without {' and '.join(missing)}: not installed" if missing else ""
    records = {"SEQKERNELS_RECORDS": "{out}/errors.jsonl"}
    return Stage(name, seconds, "", tuple(command), records, timeout + 30, note)


def sanitizer(tool: str) -> list[Stage]:
    """compute-sanitizer on small cases of the CUDA and of the Triton kernels."""
    # Every tensor an allocation that can be overrun.
    environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    command = ("compute-sanitizer", "--tool", tool, "--error-exitcode", "1", PYTHON)
    return [
        Stage(f"{tool}{of}", seconds, "", (*command, path), environment)
        for (of, path), seconds in zip(SANITIZED.items(), (25, 15), strict=True)
    ]


def ncu(rehearse: bool) -> Stage:
    """Where the warps of one forward and one backward wait, and what they read."""
    command = ["ncu", "--clock-control", "none", "--kernel-name", "regex:persistent_kernel"]
    command += [word for section in NCU_SECTIONS for word in ("--section", section)]
    command += ["--force-overwrite", "--export", "{scratch}/ncu"]
    command += [PYTHON, "-m", "bench.gpu.profile", *(["--rehearse"] if rehearse else [])]
    return Stage("ncu", 40, "", tuple(command))


def stages(call: str, rehearse: bool = False) -> list[Stage]:
    """The stages of a call.

    Args:
        call: of CALLS.
        rehearse: whether the kernels run on the CPU emulator.
    """
    if call == "first":
        return [
            Stage("facts", 6, "spin"),
            Stage("alive", 35, "spin"),
            Stage("ratios", 60, "release"),
            Stage("micro", 15, "release"),
            Stage("where", 20, "release"),
            Stage("repeat", 15, "release"),
            ncu(rehearse),
        ]
    if call == "second":
        cuda = [f"{CUDA}/test_{name}.py" for name in ("full_size", "cuda_ops", "cuda_joined")]
        behaviour = [f"{CUDA}/test_cuda_{name}.py" for name in ("layers", "behaviour")]
        return [
            Stage("facts", 6, "spin"),
            Stage("alive", 25, "spin"),
            Stage("ratios", 45, "release"),
            Stage("where", 15, "release"),
            tests("parity", 60, *cuda, f"{CUDA}/test_golden_wrappers.py"),
            tests("behaviour", 40, *behaviour, f"{DECODE}/test_greedy_graph.py"),
        ]
    triton = [f"{TRITON}/test_triton_{name}.py" for name in ("gpu", "options")]
    bench = [PYTHON, "-m", "bench", "run", "cudnn_persistent", "standard", "--quick", "--with"]
    bench += ["--device", "cuda", "--output", "{scratch}", "--minutes", "{minutes}"]
    return [
        Stage("facts", 6, "release"),
        # Compiles whole families of kernels.
        tests("triton", 60, *triton, timeout=90),
        *sanitizer("memcheck"),
        *sanitizer("racecheck"),
        Stage("suites", 40, "", tuple(bench)),
    ]

"""What is compiled: every source of the extension, some of them several times.

setup.py builds these, tests build some of them with other flags.
"""

from dataclasses import dataclass
from itertools import product
from pathlib import Path

CSRC = Path(__file__).resolve().parent

NUMBER_FORMATS = {"half": "kHalf", "bfloat16": "kBFloat16", "tf32": "kTf32", "float32": "kFloat32"}
PASSES = {"forward": "kForward", "backward": "kBackward", "stacked": "kStackedBackward"}
DTYPES = {"half": "kFloat16", "bfloat16": "kBFloat16", "float32": "kFloat32"}

_AVX2 = ("-mavx2", "-mfma", "-mf16c")
_AVX512 = tuple(f"-mavx512{part}" for part in ("f", "bw", "vl", "dq"))
ISAS = {
    "avx512": (*_AVX2, *_AVX512, "-mprefer-vector-width=512"),
    "avx2": _AVX2,
    "baseline": (),
}


@dataclass(frozen=True)
class Unit:
    """One object.

    Args:
        source: relative to csrc.
        variant: what it is compiled for, where the source is compiled more than once.
        flags: further flags of the compiler.
    """

    source: str
    variant: str = ""
    flags: tuple[str, ...] = ()

    @property
    def path(self) -> Path:
        """Of the source."""
        return CSRC / self.source

    @property
    def name(self) -> str:
        """Its own among all units of a folder, such as persistent_half_forward."""
        stem = Path(self.source).stem
        return f"{stem}_{self.variant}" if self.variant else stem

    @property
    def object(self) -> str:
        """The object's name in a build folder, such as cuda.decode.decode_half.cu.o."""
        return ".".join((*Path(self.source).parts[:-1], f"{self.name}{self.path.suffix}.o"))


def _for_isas(source: str) -> list[Unit]:
    return [
        Unit(source, isa, (f"-DSK_ISA={isa}", "-ffp-contract=fast", *flags))
        for isa, flags in ISAS.items()
    ]


# The slowest first: a build starts them in this order, and waits for its last file.
CPU = [
    *_for_isas("cpu/isa/sequence.cpp"),
    Unit("module.cpp"),
    Unit("cpu/decode/decode.cpp"),
    Unit("cpu/binding.cpp"),
    *_for_isas("cpu/isa/decode.cpp"),
    *map(
        Unit,
        (
            "cpu/products/rows_product.cpp",
            "cpu/sequence/schedule.cpp",
            "ops.cpp",
            "decode_ops.cpp",
            "cpu/isa/isa.cpp",
        ),
    ),
]
PERSISTENT = [
    Unit(
        "cuda/persistent/persistent.cu",
        f"{number_format}_{kind}",
        (f"-DSK_MATH={NUMBER_FORMATS[number_format]}", f"-DSK_PASS={PASSES[kind]}"),
    )
    for kind, number_format in product(reversed(PASSES), NUMBER_FORMATS)
]
DECODE = [
    Unit("cuda/decode/decode.cu", name, (f"-DSK_DTYPE={dtype}",)) for name, dtype in DTYPES.items()
]
# .cu without a torch header, .cpp with its stable ABI.
CUDA = [
    *PERSISTENT,
    *DECODE,
    *map(
        Unit,
        (
            "cuda/stepwise/cell.cu",
            "cuda/binding.cpp",
            "cuda/stepwise/stepwise.cpp",
            "cuda/decode/binding.cpp",
            "cuda/runtime.cu",
            "cuda/persistent/persistent.cpp",
            "cuda/plan/plan_cache.cpp",
            "cuda/device_facts.cpp",
            "cuda/precision.cpp",
        ),
    ),
]

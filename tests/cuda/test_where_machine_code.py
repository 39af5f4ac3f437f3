"""The machine code of each variant of bench/gpu/where.cu lacks the part that it leaves out."""

import re
import subprocess
import sys
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest
from cubins import ROOT, nvcc, tool

sys.path.insert(0, str(ROOT))

from bench.gpu import libraries  # noqa: E402

# Instructions of a part, with their modifiers: products and their inputs; exponentials; stores of
# 16-bit values, and loads; stores to the cluster, and words with flags.
PARTS = {
    "product": r"HMMA|LDSM",
    "pointwise": r"MUFU\.EX2",
    "memory": r"(LDG|STG)\.E\.U16",
    "exchange": r"STAS|STG\.E\.128\.STRONG\.GPU|SYNCS\.PHASECHK",
}
# The first step's loads remain, and the last state's stores.
REMAIN = {"memory"}


def instructions(variant, folder):
    """How often each part's instructions stand in the two kernels of a variant."""
    source = libraries.SOURCES[f"where_{variant}"]
    cubin = folder / f"{variant}.cubin"
    command = [str(nvcc()), "-std=c++17", "-O3", "-cubin", "-Xptxas=-v"]
    command += [f"-I{ROOT / 'csrc'}", f"-I{ROOT / 'csrc' / 'cuda'}"]
    command += ["-gencode=arch=compute_90a,code=sm_90a", *(f"-D{d}" for d in source.defines)]
    command += [str(source.path), "-o", str(cubin)]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert set(re.findall(r"(\d+) bytes spill", report)) == {"0"}, variant
    listing = [tool("cuobjdump"), "-sass", str(cubin)]
    code = subprocess.run(listing, capture_output=True, text=True, check=True).stdout
    assert code.count("Function : ") == 2
    return Counter({part: len(re.findall(text, code)) for part, text in PARTS.items()})


if nvcc() is not None:

    @pytest.fixture(scope="module")
    def counts(tmp_path_factory):
        folder = tmp_path_factory.mktemp("variants")
        variants = ["whole", *(f"without_{part}" for part in PARTS)]
        with ThreadPoolExecutor(2) as pool:
            counted = pool.map(lambda variant: instructions(variant, folder), variants)
            return dict(zip(variants, counted, strict=True))

    @pytest.mark.parametrize("part", PARTS)
    def test_the_part_is_gone_and_the_others_are_there(counts, part):
        whole, own = counts["whole"], counts[f"without_{part}"]
        for other in PARTS:
            assert whole[other] > 0
            if other != part:
                assert own[other] > 0, f"without {part} there is no {other} either"
        assert own[part] < whole[part] if part in REMAIN else own[part] == 0

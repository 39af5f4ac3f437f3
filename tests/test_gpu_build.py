"""`make gpu-build`: the options of setup.py, the manifest, and what the script builds and lists."""

import ctypes
import importlib.util
import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import setuptools
import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.gpu import libraries, manifest  # noqa: E402

TAG = sysconfig.get_config_var("SOABI")
CUDA = Path("/cuda")  # a toolkit that nothing here runs


def loaded(name: str, path: Path):
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def setup_py(monkeypatch):
    """setup.py as a module that builds nothing, without options."""
    for name in ("SEQKERNELS_CUDA_ARCHS", "SEQKERNELS_TORCH", "SEQKERNELS_SPIN_LIMIT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    return loaded("seqkernels_setup", ROOT / "setup.py")


@pytest.fixture(scope="module")
def gpu_build():
    return loaded("gpu_build", ROOT / "scripts" / "gpu_build.py")


def commands(folder: Path) -> list[str]:
    """What ninja would run."""
    done = subprocess.run(
        [sys.executable, "-m", "ninja", "-C", str(folder), "-t", "commands"],
        capture_output=True,
        text=True,
        check=True,
    )
    return done.stdout.splitlines()


def ninja_commands(setup_py, folder):
    torch_folder = setup_py.torch_directory()
    archs = os.environ.get("SEQKERNELS_CUDA_ARCHS", setup_py.DEFAULT_ARCHS).split(";")
    setup_py.write_ninja(folder / "build.ninja", folder / "_C.so", torch_folder, CUDA, archs)
    return commands(folder)


def test_by_default_nothing_is_limited(setup_py, tmp_path):
    found = ninja_commands(setup_py, tmp_path)
    assert not [line for line in found if "SK_SPIN_LIMIT" in line]
    own = importlib.util.find_spec("torch").submodule_search_locations[0]
    assert f"-L{own}/lib" in found[-1]
    assert setup_py.build_folder(True).name == f"{TAG}-cuda"


def test_options_reach_every_compilation(setup_py, tmp_path, monkeypatch):
    other = tmp_path / "python312" / "torch"
    (other / "include" / "torch").mkdir(parents=True)
    monkeypatch.setenv("SEQKERNELS_TORCH", str(other))
    monkeypatch.setenv("SEQKERNELS_SPIN_LIMIT", "4194304")
    monkeypatch.setenv("SEQKERNELS_CUDA_ARCHS", "90a")
    *compilations, link = ninja_commands(setup_py, tmp_path)
    assert len(compilations) > 30 and str(other / "lib") in link
    for line in compilations:
        assert "-DSK_SPIN_LIMIT=4194304" in line
        if "nvcc" in line:
            assert line.count("-gencode") == 1 and "code=sm_90a" in line
            assert "--compress-mode=size" in line
        else:
            assert f"{other / 'include'}" in line and 'SK_CUDA_ARCHS="90a"\'' in line
    assert setup_py.build_folder(True).name == f"{TAG}-cuda-spin"


@pytest.mark.parametrize("polls", ["0", "many", "-1", "1e6"])
def test_a_spin_limit_is_a_number(setup_py, monkeypatch, polls):
    monkeypatch.setenv("SEQKERNELS_SPIN_LIMIT", polls)
    with pytest.raises(SystemExit, match=f"SEQKERNELS_SPIN_LIMIT={polls} is no number"):
        setup_py.spin_limit()


def test_a_folder_without_torch_is_refused(setup_py, monkeypatch, tmp_path):
    monkeypatch.setenv("SEQKERNELS_TORCH", str(tmp_path))
    with pytest.raises(SystemExit, match="is no torch package"):
        setup_py.torch_directory()


@pytest.fixture
def tree(tmp_path):
    """A repository of a few files, with a build."""
    files = ("setup.py", "csrc/a.h", "csrc/cuda/b.cu", "bench/gpu/c.cu", "bench/gpu/d.h")
    for name in (*files, "README.md", "bench/gpu/e.py", "seqkernels/_C.so"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    (tmp_path / "build" / "gpu").mkdir(parents=True)
    facts = {"commit": "abc", "changed": False, "python": TAG, "archs": "90a"}
    manifest.write(facts, [tmp_path / "seqkernels/_C.so"], tmp_path)
    return tmp_path


def test_a_build_is_of_its_sources(tree):
    assert manifest.refusal(tree) is None
    assert manifest.read(tree)["files"] == {"seqkernels/_C.so": len("seqkernels/_C.so")}
    for name in ("README.md", "bench/gpu/e.py"):
        (tree / name).write_text("changed")
    assert manifest.refusal(tree) is None
    for name in ("setup.py", "csrc/a.h", "csrc/cuda/b.cu", "bench/gpu/c.cu", "bench/gpu/d.h"):
        (tree / name).write_text("changed")
        assert manifest.refusal(tree) == "the build is of other sources"
        (tree / name).write_text(name)
        assert manifest.refusal(tree) is None
    (tree / "csrc" / "new.cpp").write_text("")
    assert manifest.refusal(tree) == "the build is of other sources"


def test_a_build_is_for_one_python_and_whole(tree):
    path = tree / manifest.FILE
    content = path.read_text()
    path.write_text(json.dumps(json.loads(content) | {"python": "cpython-39"}))
    assert manifest.refusal(tree) == f"the build is for cpython-39, this Python is {TAG}"
    path.write_text(content)
    (tree / "seqkernels" / "_C.so").unlink()
    assert manifest.refusal(tree) == "seqkernels/_C.so of the build is missing"
    path.unlink()
    assert manifest.refusal(tree) == "there is no build/gpu/build.json"


def test_the_script_builds_and_lists(gpu_build, monkeypatch, capsys):
    calls, written = [], []

    def write(facts, files):
        written.append((facts, files))
        return {"files": {str(files[0]): 25 * 10**6, str(files[-1]): size}}

    monkeypatch.setattr(gpu_build, "build_extension", lambda *a: calls.append(a))
    monkeypatch.setattr(gpu_build, "build_libraries", lambda *a: calls.append(a))
    monkeypatch.setattr(manifest, "write", write)
    monkeypatch.setenv("SEQKERNELS_CUDA_ARCHS", "90a;100a")
    monkeypatch.setenv("SEQKERNELS_COMMIT", "abc")
    size = 10**6
    assert gpu_build.main([]) == 0
    assert "26.00 MB  for" in capsys.readouterr().out
    (facts, files), options = written[0], {"SEQKERNELS_CUDA_ARCHS": "90a;100a"}
    assert facts["sources"] == manifest.sources() and facts["commit"] == "abc"
    assert facts["python"] == TAG and facts["archs"] == "90a;100a"
    options["SEQKERNELS_TORCH"] = str(Path(torch.__file__).parent)
    python = sys.executable
    spin = ROOT / "build" / "gpu" / "spin"
    limited = options | {"SEQKERNELS_SPIN_LIMIT": str(1 << 20)}
    expected = [(python, ROOT, options), (python, spin, limited), (python, "90a;100a")]
    assert sorted(calls, key=str) == sorted(expected, key=str)
    module = f"_C{sysconfig.get_config_var('EXT_SUFFIX')}"
    names = [f.relative_to(ROOT).as_posix() for f in files]
    assert f"seqkernels/{module}" in names and f"build/gpu/spin/seqkernels/{module}" in names
    assert {f"build/gpu/{name}.so" for name in libraries.SOURCES} <= set(names)
    size = 10**7
    with pytest.raises(SystemExit, match="more than 30 MB"):
        gpu_build.main([])


def test_an_unknown_python_is_refused(gpu_build):
    with pytest.raises(SystemExit, match="no-such-python was not found; GPU_PYTHON names"):
        gpu_build.main(["--python", "no-such-python"])


def test_a_build_that_compiled_nothing_fails(gpu_build, tmp_path, monkeypatch):
    (tmp_path / "seqkernels").mkdir()
    report = {"compiled": False, "cuda": False, "reason": "no compiler"}
    (tmp_path / "seqkernels" / "_build.json").write_text(json.dumps(report))
    monkeypatch.setattr(gpu_build.subprocess, "run", lambda *_, **__: None)
    with pytest.raises(SystemExit, match="nothing was compiled: no compiler"):
        gpu_build.build_extension(sys.executable, tmp_path, {})


def test_every_library_is_built(gpu_build, tmp_path):
    (tmp_path / "build.ninja").write_text(gpu_build.ninja_file("90a;100a"))
    found = commands(tmp_path)
    for name, source in libraries.SOURCES.items():
        assert source.path.exists()
        (compilation,) = (line for line in found if line.endswith(f"-o {name}.o"))
        assert all(f" -D{define} " in compilation for define in source.defines)
        assert "code=sm_90a" in compilation and "code=sm_100a" in compilation
        assert [line for line in found if line.endswith(f"-o {libraries.FOLDER / name}.so")]


@pytest.fixture(scope="module")
def library(tmp_path_factory):
    """A library whose launcher looks at its arguments."""
    path = tmp_path_factory.mktemp("library") / "library.so"
    code = (
        'extern "C" int check(const float* x, const void* none, int n, long wide, double y) {\n'
        "  return x[1] == 2.5f && none == nullptr && n == -3 && wide == 1l << 40 && y == 0.5\n"
        "             ? 0 : 1000;\n}\n"
        'extern "C" int fail(int code) { return code; }\n'
    )
    command = ["g++", "-shared", "-fPIC", "-x", "c++", "-", "-o", str(path)]
    subprocess.run(command, input=code, text=True, check=True)
    ctypes.CDLL(str(path))
    return libraries.Library(libraries._carried(path))


def test_arguments_of_a_launcher(library):
    library.run("check", torch.tensor([0.0, 2.5]), None, -3, 1 << 40, 0.5)


@pytest.mark.parametrize(
    ("code", "name", "refused"),
    [
        (720, "cudaErrorCooperativeLaunchTooLarge", True),
        (912, "cudaErrorInvalidClusterSize", True),
        (719, "cudaErrorLaunchFailure", False),
        (5, "CUDA error 5", False),
    ],
)
def test_errors_of_a_launcher(library, code, name, refused):
    with pytest.raises(libraries.LaunchError, match=f"fail: {name}") as caught:
        library.run("fail", code)
    assert caught.value.refused == refused


def test_a_library_that_was_not_built(monkeypatch):
    monkeypatch.setattr(libraries, "FOLDER", ROOT / "build" / "nowhere")
    with pytest.raises(RuntimeError, match="build/nowhere/micro.so is not there: run `make"):
        libraries.load.__wrapped__("micro", False)

"""`python -m seqkernels info`, and the build on machines that lack something."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from seqkernels import __main__, _extension, dispatch, info

ROOT = Path(__file__).resolve().parent.parent


def test_info_names_every_backend_and_ends_with_what_to_do(capsys):
    assert __main__.main(["info"]) == 0
    printed = capsys.readouterr().out
    for name in dispatch.backends():
        assert f"\n  {name}" in printed
    facts, _, steps = printed.split("\n\n")
    assert facts.startswith("This is seqkernels") and facts.endswith(".")
    assert all(fact.endswith(".") for fact in info.facts())
    assert steps.startswith("What to do next:\n  - ") and "seqkernels.explain" in steps


def test_unknown_command_is_refused(capsys):
    with pytest.raises(SystemExit):
        __main__.main(["nothing"])
    assert "invalid choice: 'nothing'" in capsys.readouterr().err


def test_info_says_why_the_extension_is_missing(monkeypatch):
    monkeypatch.setattr(_extension, "C", None)
    monkeypatch.setattr(_extension, "REASON", "No module named 'seqkernels._C'")
    monkeypatch.setattr(_extension, "build_report", lambda: {"reason": "no compiler xyz"})
    monkeypatch.setenv("CXX", "no-such-compiler")
    report = info.report()
    assert "The C++ kernels are not compiled: no compiler xyz." in report
    assert "native      no: the compiled module is missing" in report
    assert "reference   yes" in report
    assert "What to do next:\n  - Install g++. Compile the kernels" in report


class WithoutCuda:
    """The extension, compiled without CUDA."""

    with_cuda = False
    compiler = "1.2.3"


def test_info_says_how_to_use_a_gpu(monkeypatch):
    monkeypatch.setattr(_extension, "C", WithoutCuda)
    monkeypatch.setattr(_extension, "build_report", lambda: {"cuda_reason": "nobody asked"})
    monkeypatch.setattr(info.shutil, "which", lambda name: f"/usr/bin/{name}")
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: False)
    report = info.report()
    assert "The CUDA kernels are not compiled: nobody asked." in report
    assert "Install a CUDA build of torch" in report
    monkeypatch.setattr(torch.backends.cuda, "is_built", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert info.next_steps()[0].startswith("Compile the CUDA kernels for this GPU")


def copy_of_sources(folder: Path) -> Path:
    target = folder / "project"
    target.mkdir()
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, target)
    ignore = shutil.ignore_patterns("*.so", "_build.json", "__pycache__")
    shutil.copytree(ROOT / "seqkernels", target / "seqkernels", ignore=ignore)
    shutil.copytree(ROOT / "csrc", target / "csrc")
    return target


def test_without_a_compiler_the_reference_still_works(tmp_path):
    project = copy_of_sources(tmp_path)
    environment = {**os.environ, "CXX": "no-such-compiler"}
    environment.pop("PYTHONPATH", None)
    subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=project,
        env=environment,
        check=True,
        capture_output=True,
    )
    report = json.loads((project / "seqkernels/_build.json").read_text())
    assert not report["compiled"] and "no-such-compiler" in report["reason"]
    code = (
        # An editable installation would find the compiled module of this checkout.
        "import sys\n"
        "sys.meta_path = [f for f in sys.meta_path if '__editable__' not in f.__module__]\n"
        "import torch, seqkernels\n"
        "from seqkernels import info\n"
        "print(info.report())\n"
        "layer = seqkernels.LSTM(3, 4)\n"
        "output, _ = layer(torch.randn(5, 2, 3))\n"
        "output.sum().backward()\n"
        "print(output.shape, layer.weight_hh_l0.grad is not None)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=project,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    assert "no-such-compiler was not found" in done.stdout
    assert "torch.Size([5, 2, 4]) True" in done.stdout


def test_a_demanded_cuda_build_without_nvcc_fails_plainly(tmp_path):
    project = copy_of_sources(tmp_path)
    environment = {**os.environ, "SEQKERNELS_CUDA": "1", "CUDA_HOME": str(tmp_path / "nowhere")}
    done = subprocess.run(
        [sys.executable, "setup.py", "-q", "build_ext", "--inplace"],
        cwd=project,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode != 0
    assert "no nvcc in" in done.stderr


def test_a_build_replaces_a_newer_one_of_other_options(tmp_path):
    project = copy_of_sources(tmp_path)
    compiler = tmp_path / "compiler"
    compiler.write_text(
        "#!/bin/sh\n"
        "while [ $# -gt 1 ]; do\n"
        '    [ "$1" = -o ] && echo "$SEQKERNELS_SPIN_LIMIT" > "$2"\n'
        "    shift\n"
        "done\n"
    )
    compiler.chmod(0o755)

    def build(spin_limit: str, *options: str) -> list[str]:
        subprocess.run(
            [sys.executable, "setup.py", "-q", "build_ext", "--inplace", *options],
            cwd=project,
            env=os.environ
            | {"CXX": str(compiler), "SEQKERNELS_CUDA": "0", "SEQKERNELS_SPIN_LIMIT": spin_limit},
            check=True,
            capture_output=True,
        )
        return [path.read_text() for path in (project / "seqkernels").glob("_C*.so")]

    assert build("") == ["\n"]
    # As pip builds an editable installation: outside the folder that the next build looks into.
    assert build("7", "--build-lib", str(tmp_path / "elsewhere")) == ["7\n"]
    assert build("") == ["\n"]


@pytest.mark.parametrize("command", __main__.COMMANDS)
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_every_command_has_help(command, option, capsys):
    with pytest.raises(SystemExit) as exit_:
        __main__.main([command, option])
    assert exit_.value.code == 0
    assert capsys.readouterr().out.startswith("usage: python -m seqkernels")


@pytest.mark.parametrize("command", __main__.COMMANDS)
def test_every_command_refuses_what_it_does_not_know(command, capsys):
    for arguments in (["--nothing"], ["nothing"]):
        with pytest.raises(SystemExit) as exit_:
            __main__.main([command, *arguments])
        assert exit_.value.code == 2
        printed = capsys.readouterr().err
        assert printed.startswith("usage: ")
        assert f"error: unrecognized arguments: {arguments[0]}" in printed


def interrupted(arguments, when, again=0.0, **environment):
    """Exit status and what was printed of a command that gets Ctrl-C at a line of its stderr."""
    command = [sys.executable, "-X", "importtime", "-m", *arguments]
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        stdin=subprocess.DEVNULL, env=os.environ | environment,
    )  # fmt: skip
    try:
        for line in process.stderr:
            if line.rstrip().endswith(when):
                break
        else:
            raise AssertionError(f"{when} was not seen")
        process.send_signal(signal.SIGINT)
        if again:
            time.sleep(again)
            process.send_signal(signal.SIGINT)
        _, rest = process.communicate(timeout=60)
    finally:
        process.kill()
    printed = [line for line in rest.splitlines() if not line.startswith("import time:")]
    return process.returncode, "\n".join(printed)


MOMENTS = [
    ("seqkernels info", "seqkernels._interrupt"),
    ("seqkernels info", "seqkernels"),
    ("seqkernels gradients", "torch._C"),
    ("seqkernels g2p", "torch.nn"),
    ("seqkernels g2p --words 400", "tqdm"),
    ("seqkernels.g2p --words 400", "seqkernels.g2p"),
]


@pytest.mark.parametrize("again", [0.0, 0.01])
@pytest.mark.parametrize(("command", "when"), MOMENTS)
def test_ctrl_c_ends_a_command_without_a_traceback(command, when, again):
    status, printed = interrupted(command.split(), f" {when}", again)
    assert status == 130
    assert "Traceback" not in printed and len(printed.split("\n")) <= 3, printed


def test_ctrl_c_is_left_alone_where_another_program_imports_the_package():
    code = (
        "import signal, sys\n"
        "import seqkernels\n"
        "assert signal.getsignal(signal.SIGINT) is signal.default_int_handler\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_ctrl_c_while_an_interrupted_command_ends_changes_nothing():
    code = (
        "import atexit, signal\n"
        "from seqkernels import _interrupt\n"
        "atexit.register(signal.raise_signal, signal.SIGINT)\n"
        "_interrupt.end(_interrupt.INTERRUPTED)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "")


def test_ctrl_c_in_a_command_called_from_python(monkeypatch, capsys):
    def stop(arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr(info, "main", stop)
    assert __main__.main(["info"]) == 130
    assert capsys.readouterr().err == "\ninterrupted\n"

"""The table of cells is what csrc/cells/ declares, and "Adding a cell" in the docs works."""

import re
from pathlib import Path

import cell_library
import pytest
import torch
from parity import Case, check_sequence

from seqkernels import _extension, reference
from seqkernels.cells import CELLS, CellSpec, add_compiled, compiled

ROOT = Path(__file__).resolve().parent.parent


def recipe() -> list[tuple[str, str]]:
    """(language, text) of the snippets of "Adding a cell"."""
    section = (
        (ROOT / "docs" / "design.md").read_text().split("## Adding a cell")[1].split("\n## ")[0]
    )
    return re.findall(r"```(\w+)\n(.*?)```", section, re.DOTALL)


def test_the_table_is_what_the_kernels_declare():
    declared = _extension.C.cells()
    assert [cell["name"] for cell in declared] == list(CELLS)
    for cell in declared:
        own = CELLS[cell["name"]]
        assert compiled(cell | {"operand": own.operand}) == own


def test_a_compiled_cell_that_is_not_in_the_table_is_added(monkeypatch):
    monkeypatch.setattr("seqkernels.cells.CELLS", found := dict(CELLS))
    add_compiled([{"name": "new", "gates": 2, "states": 3, "stages": ((0, 2, (0, 1), ()),)}])
    assert found.keys() - CELLS.keys() == {"new"}
    assert found["new"] == CellSpec("new", gates=2, states=3)


def test_an_unknown_step_is_named():
    CELLS["without_step"] = CellSpec("without_step", gates=1, states=1)
    try:
        with pytest.raises(KeyError, match="without_step has no reference step"):
            reference.step("without_step", *torch.zeros(3, 2, 2), (torch.zeros(2, 2),))
    finally:
        del CELLS["without_step"]


def test_the_recipe_of_the_docs(tmp_path):
    """Its cell is compiled, and its kernels agree with its step, in every dtype."""
    snippets = dict(recipe())
    names = re.findall(r"^// (\w+\.h)", snippets["cpp"], re.MULTILINE)
    for name, text in zip(
        names, re.split(r"^// \w+\.h", snippets["cpp"], flags=re.M)[1:], strict=True
    ):
        (tmp_path / name).write_text(f"//{text}")
    before = set(CELLS)
    exec(compile(snippets["python"], "docs/design.md", "exec"), {})
    (cell,) = CELLS.keys() - before
    try:
        library = cell_library.build(tmp_path / names[-1], "seqkernels_recipe")
        torch.ops.load_library(str(library))
        ops = torch.ops.seqkernels_recipe
        pair = [getattr(ops, f"{cell}_sequence{end}").default for end in ("", "_backward")]
        for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16):
            check_sequence(cell, Case(6, 5, 40, lengths=(3, 5, 1, 5, 0), reset=True), dtype, *pair)
    finally:
        del CELLS[cell], reference.STEPS[cell]

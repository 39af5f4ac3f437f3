"""Launch plans for an H100 as tables: rewrites those of docs/cuda.md.

Plans are host code (csrc/cuda/plan/), so no GPU is needed, and tests/cuda/test_plan.py compares the
page with what the extension says.
"""

import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from seqkernels import _extension  # noqa: E402

NAMES = {"lstm": "LSTM", "gru": "GRU", "rnn_tanh": "RNN", "gru_reset_before": "GRU, reset before"}
# (cell, number format, N, H, joined parts)
SHAPES = [
    ("lstm", "float16", 1, 512, {}),
    ("lstm", "float16", 16, 512, {}),
    ("lstm", "float16", 64, 1024, {}),
    ("lstm", "float16", 128, 256, {}),
    ("lstm", "float16", 16, 512, {"directions": 2}),
    ("lstm", "float16", 16, 512, {"layers": 2}),
    ("lstm", "float16", 16, 256, {"layers": 4}),
    ("lstm", "tf32", 16, 512, {}),
    ("lstm", "float32", 16, 512, {}),
    ("gru", "float16", 16, 1024, {}),
    ("gru", "float16", 64, 512, {"directions": 2}),
    ("gru", "tf32", 16, 768, {}),
    ("rnn_tanh", "float16", 16, 1024, {}),
]
MATHS = {"float16": "float16, bfloat16", "tf32": "TF32", "float32": "strict float32"}
EXCHANGES = {"none": "no exchange", "cluster": "cluster", "L2": "L2"}


def describe(*call, **parts) -> str:
    """One cell of the table: the group of a recurrence, how many there are, how they exchange."""
    found = _extension.C.plan(*call, **parts)
    if found["refusal"]:
        return "none"
    groups = found["slices"] * found["parts"]
    pieces = f" in {found['pieces']} pieces" if found["pieces"] > 1 else ""
    return (
        f"{groups} × {found['blocks']} × {found['units']}, {EXCHANGES[found['exchange']]}{pieces}"
    )


def shapes() -> str:
    """Plans of known shapes."""
    lines = ["| | N, H | forward | backward |", "| --- | --- | --- | --- |"]
    for cell, math, batch, hidden, parts in SHAPES:
        name = f"{NAMES[cell]}, {MATHS[math].split(',')[0]}"
        if "directions" in parts:
            name += ", both directions"
        if "layers" in parts:
            name += f", {parts['layers']} layers"
        sizes = (batch, hidden)
        forward = describe(cell, math, False, *sizes, **parts)
        backward = describe(cell, math, True, *sizes, **parts)
        if "layers" in parts and backward == "none":
            backward = "a launch each"
        lines.append(f"| {name} | {batch}, {hidden} | {forward} | {backward} |")
    return "\n".join(lines)


def largest(cell: str, math: str, batch: int, training: bool, **parts) -> int:
    """The largest hidden size with plans, of the multiples of 32."""

    def planned(hidden: int) -> bool:
        return not any(
            _extension.C.plan(cell, math, backward, batch, hidden, **parts)["refusal"]
            for backward in (False, True)[: 1 + training]
        )

    return max(filter(planned, range(32, 4096, 32)))


def capacity() -> str:
    """The largest hidden sizes that have plans."""
    lines = [
        "| | forward, N = 16 | training | forward, N = 64 | training "
        "| 2 layers forward, N = 16 | 2 layers training |",
        "| --- | ---: | ---: | ---: | ---: | ---: | ---: |",
    ]
    for cell in ("lstm", "gru", "gru_reset_before", "rnn_tanh"):
        for math, title in MATHS.items():
            sizes = [largest(cell, math, n, t) for n in (16, 64) for t in (False, True)]
            sizes += [largest(cell, math, 16, t, layers=2) for t in (False, True)]
            lines.append(f"| {cell}, {title} | {' | '.join(map(str, sizes))} |")
    return "\n".join(lines)


PAGE = ROOT / "docs" / "cuda.md"
BLOCKS = {"shapes": shapes, "capacity": capacity}


def block(name: str) -> re.Pattern:
    """What stands between the markers of a table."""
    return re.compile(rf"(<!-- plans:{name}:begin -->\n)(.*?)(\n<!-- plans:{name}:end -->)", re.S)


def main() -> None:
    """Rewrite the page."""
    text = PAGE.read_text()
    for name, table in BLOCKS.items():
        text, count = block(name).subn(lambda m, t=table: m[1] + t() + m[3], text)
        if count != 1:
            raise SystemExit(f"{PAGE.name} has {count} blocks called plans:{name}")
    PAGE.write_text(text)


if __name__ == "__main__":
    main()

"""What is measured: cases as plain data, in suites, each with the reason it is there."""

from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace

from seqkernels.cells import CELLS

MODES = ("inference", "training")
DEVICES = ("cpu", "cuda")


@dataclass(frozen=True)
class Case:
    """One model on one input.

    Attributes:
        cell: a key of `seqkernels.cells.CELLS`.
        length, batch: steps T and rows N of the input.
        input_size, hidden_size: I and H.
        num_layers, bidirectional, proj_size: as in `torch.nn.LSTM`.
        dtype: of the parameters and the input. "tf32" is float32 with TF32 products allowed, and
            "float32" is float32 without, both on a GPU; on a CPU there is only "float32".
        rows: "padded", every row has T steps; "packed", a PackedSequence whose lengths fall from T
            to T/5; "lengths", the same rows in a padded tensor with their lengths beside it.
        kind: "sequence", a layer in one call; "cell", a Python loop of T calls of the cell;
            "decode", T greedy steps of embedding, cells, output projection and arg-max.
        vocabulary: tokens of a decode case, else 0.
        modes: "inference" is the forward under `torch.inference_mode`; "training" is the forward
            and the gradients of the input and all parameters.
        devices: where the case is measured.
    """

    cell: str
    length: int
    batch: int
    input_size: int
    hidden_size: int
    num_layers: int = 1
    bidirectional: bool = False
    proj_size: int = 0
    dtype: str = "float32"
    rows: str = "padded"
    kind: str = "sequence"
    vocabulary: int = 0
    modes: tuple[str, ...] = MODES
    devices: tuple[str, ...] = DEVICES

    @property
    def id(self) -> str:
        """A readable name, unique within a suite."""
        parts = [
            self.cell,
            f"T{self.length}-N{self.batch}-I{self.input_size}-H{self.hidden_size}",
        ]
        if self.kind != "sequence":
            parts.insert(1, self.kind)
        if self.num_layers > 1:
            parts.append(f"L{self.num_layers}")
        if self.bidirectional:
            parts.append("bidirectional")
        if self.proj_size:
            parts.append(f"P{self.proj_size}")
        if self.vocabulary:
            parts.append(f"V{self.vocabulary}")
        if self.rows != "padded":
            parts.append(self.rows)
        return "-".join([*parts, self.dtype])

    @property
    def gates(self) -> int:
        """Pre-activations per hidden unit, G."""
        return CELLS[self.cell].gates

    def lengths(self) -> list[int]:
        """Steps of every row, in falling order: T for all, or from T down to T/5."""
        if self.rows == "padded":
            return [self.length] * self.batch
        low = max(1, self.length // 5)
        span = max(1, self.batch - 1)
        return [self.length - (self.length - low) * row // span for row in range(self.batch)]

    def to_json(self) -> dict:
        """The case as JSON, without what belongs to the suite."""
        fields = asdict(self)
        del fields["modes"], fields["devices"]
        return {"id": self.id, **fields}


@dataclass(frozen=True)
class Suite:
    """Cases that answer one question.

    Attributes:
        name: of the suite, and of its result file.
        why: one sentence, printed with the results.
        cases: in the order of the tables.
        sweep: the field of `Case` on the x axis of the plot; "case" gives every case its own place.
        extra: contestants measured beside torch.nn and seqkernels, by name. The cpu suite has none,
            so that it takes minutes: the loop would be compiled anew for every case.
        backends: those measured one by one beside the one that dispatch takes; None stands for all.
    """

    name: str
    why: str
    cases: tuple[Case, ...]
    sweep: str = "case"
    extra: tuple[str, ...] = field(default=())
    backends: tuple[str, ...] | None = None

    def on(self, device: str) -> tuple[Case, ...]:
        """The cases that run on a device type, "cpu" or "cuda"."""
        return tuple(case for case in self.cases if device in case.devices)

    def extra_on(self, device: str) -> tuple[str, ...]:
        """The further contestants on a device type: all but the compiled loop need a GPU."""
        return tuple(name for name in self.extra if device == "cuda" or name == "compile")


def each(base: Case, **swept: Iterable) -> tuple[Case, ...]:
    """Copies of a case over the product of the values of its fields, the last name fastest."""
    cases = [base]
    for name, values in swept.items():
        values = tuple(values)
        cases = [replace(case, **{name: value}) for case in cases for value in values]
    return tuple(cases)


GPU, CPU = ("cuda",), ("cpu",)

# T, N, I, H: from many small products to weights that outgrow a cache, and one row to 128.
CPU_SHAPES = (
    (50, 64, 256, 256),
    (100, 32, 512, 512),
    (50, 16, 1024, 1024),
    (100, 1, 256, 256),
    (20, 128, 128, 128),
    (200, 8, 64, 64),
)
# Shapes of a GPU sweep over H, I = H: T, N.
_LONG = {"length": 1024, "batch": 16}


def _square(cell: str, hidden_size: int, **fields) -> Case:
    return Case(cell, input_size=hidden_size, hidden_size=hidden_size, **fields)


def _sweep_hidden(cells: Iterable[str], sizes: Iterable[int], dtypes: Iterable[str], **fields):
    sizes = tuple(sizes)
    return tuple(
        replace(_square(cell, size, **fields), dtype=dtype)
        for dtype in dtypes
        for cell in cells
        for size in sizes
    )


def _headline() -> tuple[Case, ...]:
    """One case of every kind, the most telling first; all at 512 steps, then all at 128."""

    def case(size: int, cell: str = "lstm", dtype: str = "float16", **fields) -> Case:
        shape = {"length": 512, "batch": 16, "devices": GPU} | fields
        return _square(cell, size, dtype=dtype, **shape)

    cases = (
        *(case(size) for size in (256, 512, 768, 1024)),
        *(case(512, batch=batch) for batch in (64, 128)),
        case(512, dtype="bfloat16"),
        case(1024, dtype="tf32"),
        case(1024, "gru", "bfloat16"),
        case(512, "gru", "tf32"),
        case(512, dtype="float32"),
        case(256, batch=1),
        case(512, dtype="bfloat16", num_layers=2),
        case(512, dtype="bfloat16", bidirectional=True),
        case(512, dtype="bfloat16", rows="packed"),
        case(64),
    )
    return tuple(replace(c, length=length) for length in (512, 128) for c in cases)


_SUITES = (
    Suite(
        "cpu",
        "The drop-in layers on a CPU, from one row to 128 and from small to large weights, padded"
        " and packed: what a person without a GPU gains by changing one name.",
        tuple(
            Case(cell, *shape, rows=rows, devices=CPU)
            for rows, cells in (
                ("padded", ("lstm", "gru", "rnn_tanh")),
                ("packed", ("lstm", "gru")),
            )
            for cell in cells
            for shape in CPU_SHAPES
            # One row cannot be ragged.
            if rows == "padded" or shape[1] > 1
        ),
    ),
    Suite(
        "cells",
        "LSTMCell, GRUCell and RNNCell in a Python loop, for models that need the state at every"
        " step: the cost of a call matters as much as its arithmetic.",
        tuple(
            _square(cell, 256, length=50, batch=batch, kind="cell")
            for cell in ("lstm", "gru", "rnn_tanh")
            for batch in (1, 64)
        ),
        extra=("compile", "graph"),
    ),
    Suite(
        "headline",
        "A GPU in a minute: float16 where cuDNN has its fast path, then formats, cells, layers and"
        " layouts for which it has none, at two lengths, whose difference is the time of a step.",
        _headline(),
        backends=("stepwise",),  # Triton would compile for seconds
    ),
    Suite(
        "cudnn_persistent",
        "The corner in which torch lets cuDNN keep the weights on chip (float16, one layer, one"
        " direction, H and I multiples of 128, N a multiple of 8): the hardest to pass.",
        (
            *_sweep_hidden(("lstm",), (256, 512, 768, 1024), ("float16",), devices=GPU, **_LONG),
            *each(
                _square("lstm", 512, length=1024, batch=8, dtype="float16", devices=GPU),
                batch=(8, 64, 128),
            ),
        ),
        extra=("compile", "flashrnn"),
    ),
    Suite(
        "standard",
        "What most models run: one layer in bfloat16, TF32 or float32, and every GRU. cuDNN takes"
        " one product and one pointwise kernel a step here.",
        _sweep_hidden(
            ("lstm", "gru"),
            (256, 512, 768, 1024),
            ("bfloat16", "tf32", "float32"),
            devices=GPU,
            **_LONG,
        ),
        sweep="hidden_size",
        extra=("compile", "flashrnn", "haste", "torchrl"),
    ),
    Suite(
        "layers",
        "Stacked and two-directional layers, as encoders have them: independent recurrences that"
        " could overlap.",
        tuple(
            case
            for dtype, devices, shape in (
                ("bfloat16", GPU, {"length": 512, "batch": 32}),
                ("float16", GPU, {"length": 512, "batch": 32}),
                ("float32", CPU, {"length": 50, "batch": 16}),
            )
            for cell in ("lstm", "gru")
            for case in (
                *each(
                    _square(cell, 256, dtype=dtype, devices=devices, **shape),
                    num_layers=(2, 4) if devices == GPU else (2,),
                ),
                _square(cell, 256, dtype=dtype, devices=devices, bidirectional=True, **shape),
                _square(
                    cell,
                    256,
                    dtype=dtype,
                    devices=devices,
                    num_layers=2,
                    bidirectional=True,
                    **shape,
                ),
            )
        ),
        extra=("compile",),
    ),
    Suite(
        "variable_length",
        "Rows of different lengths, as text and speech have them, both as a PackedSequence and as a"
        " padded tensor with lengths (torch has to pack and unpack it).",
        tuple(
            replace(case, rows=rows)
            for case in (
                *_sweep_hidden(
                    ("lstm", "gru"), (256, 512), ("bfloat16",), length=512, batch=32, devices=GPU
                ),
                *_sweep_hidden(
                    ("lstm", "gru"), (128, 256), ("float32",), length=50, batch=32, devices=CPU
                ),
            )
            for rows in ("packed", "lengths")
        ),
        extra=("compile",),
    ),
    Suite(
        "small_hidden",
        "Small models (H up to 192): cuDNN has a second on-chip kernel here, and on a CPU the call"
        " itself is a large part of the time.",
        (
            *_sweep_hidden(
                ("lstm", "gru"), (32, 64, 128, 192), ("float16", "tf32"), devices=GPU, **_LONG
            ),
            *_sweep_hidden(
                ("lstm", "gru"),
                (16, 32, 64, 128),
                ("float32",),
                length=100,
                batch=8,
                devices=CPU,
            ),
        ),
        sweep="hidden_size",
        extra=("compile", "flashrnn", "torchrl"),
    ),
    Suite(
        "large",
        "Weights or batches too large to stay on chip: the time is that of the matrix products, and"
        " parity is the limit.",
        (
            *_sweep_hidden(
                ("lstm", "gru"),
                (2048, 4096),
                ("bfloat16",),
                length=256,
                batch=128,
                devices=GPU,
            ),
            *each(
                _square("lstm", 1024, length=256, batch=256, dtype="bfloat16", devices=GPU),
                cell=("lstm", "gru"),
                batch=(256, 512),
            ),
        ),
        extra=("compile",),
    ),
    Suite(
        "odd_sizes",
        "Sizes that are no multiple of a tile, which every real model has somewhere.",
        tuple(
            Case(cell, length, batch, hidden, hidden, dtype=dtype, devices=devices)
            for dtype, devices, length, shapes in (
                ("bfloat16", GPU, 512, ((1, 100), (13, 200), (33, 650), (17, 1000))),
                ("float32", CPU, 50, ((1, 100), (13, 200), (33, 130))),
            )
            for cell in ("lstm", "gru")
            for batch, hidden in shapes
        ),
        extra=("compile",),
    ),
    Suite(
        "inference_latency",
        "One row at a time, as a service answers a request: nothing to amortise a step over.",
        (
            *_sweep_hidden(
                ("lstm", "gru"),
                (128, 256, 512, 1024),
                ("float16", "bfloat16"),
                length=256,
                batch=1,
                modes=("inference",),
                devices=GPU,
            ),
            *_sweep_hidden(
                ("lstm", "gru", "rnn_tanh"),
                (64, 128, 256, 512),
                ("float32",),
                length=50,
                batch=1,
                modes=("inference",),
                devices=CPU,
            ),
        ),
        sweep="hidden_size",
        extra=("compile", "graph"),
    ),
    Suite(
        "decode",
        "Greedy decoding: every step needs the token of the step before, so launches and calls, not"
        " arithmetic, set the pace.",
        tuple(
            Case(
                cell,
                50,
                batch,
                hidden,
                hidden,
                num_layers=layers,
                vocabulary=vocabulary,
                kind="decode",
                modes=("inference",),
            )
            for cell in ("lstm", "gru")
            for batch, hidden, layers, vocabulary in (
                (1, 256, 1, 1024),
                (64, 256, 1, 1024),
                (1, 128, 2, 128),
            )
        ),
        extra=("compile", "graph"),
    ),
)

SUITES: dict[str, Suite] = {suite.name: suite for suite in _SUITES}


def select(names: Iterable[str], device: str) -> tuple[Suite, ...]:
    """The named suites; "all" stands for every suite that has a case on the device.

    Raises:
        ValueError: a name is unknown, or its suite has no case on the device.
    """
    chosen: list[Suite] = []
    for name in names:
        if name == "all":
            chosen.extend(suite for suite in _SUITES if suite.on(device))
            continue
        if name not in SUITES:
            raise ValueError(f"unknown suite {name!r}; suites: {', '.join(SUITES)}")
        if not SUITES[name].on(device):
            raise ValueError(f"suite {name!r} has no case on {device}")
        chosen.append(SUITES[name])
    return tuple(dict.fromkeys(chosen))

"""What a case costs at least: operations, bytes, and the time below which no schedule can go.

The floor of a GPU is the plan's: a recurrence has T steps, and a step is at least one exchange of h
between processors and its product. The floor of a CPU is its products at the rate of one large
matrix product. Rates are measured on the machine (`timing.calibrate`), not read off a data sheet.
"""

from dataclasses import asdict, dataclass

from .cases import Case

# Seconds in which h reaches all processors of a group: through the shared memory of a thread-block
# cluster, and through the L2 cache (H100, estimated from its latencies).
_EXCHANGE_CLUSTER = 0.4e-6
_EXCHANGE_L2 = 0.9e-6
# Shared memory of the largest cluster: 16 processors of 227 KB.
_CLUSTER_BYTES = 16 * 227 * 1024

_ITEM_SIZE = {"float64": 8, "float32": 4, "tf32": 4, "bfloat16": 2, "float16": 2}


@dataclass(frozen=True)
class Cost:
    """What one call has to do.

    Attributes:
        steps: dependent steps, one after another: T, and one more for every further layer.
        flops: operations of all matrix products; training has three times those of inference.
        weight_bytes: all weights, read at least once.
        recurrent_bytes: `weight_hh` of one direction of one layer, read at every step unless it
            stays on chip.
        stream_bytes: input, pre-activations, output and what the backward keeps, each written and
            read once.
        exchange_bytes: h of one step of one direction, [N, H]; its backward moves G times as much.
    """

    steps: int
    flops: int
    weight_bytes: int
    recurrent_bytes: int
    stream_bytes: int
    exchange_bytes: int

    def to_json(self) -> dict:
        """As plain numbers."""
        return asdict(self)


def cost(case: Case, mode: str) -> Cost:
    """Count the operations and bytes of one call."""
    item = _ITEM_SIZE[case.dtype]
    directions = 1 + case.bidirectional
    gate_columns = case.gates * case.hidden_size
    state_columns = case.proj_size or case.hidden_size
    rows = sum(case.lengths())
    flops = weights = stream = 0
    for layer in range(case.num_layers):
        inputs = case.input_size if layer == 0 else state_columns * directions
        if layer and case.kind != "sequence":
            inputs = case.hidden_size
        columns = gate_columns * (inputs + state_columns)
        projection = case.proj_size * case.hidden_size
        flops += directions * 2 * rows * (columns + projection)
        weights += directions * item * (columns + projection + 2 * gate_columns)
        # Input once; pre-activations out and in; output.
        stream += item * rows * (inputs + directions * (2 * gate_columns + state_columns))
        if mode == "training":
            # Gates and states kept and read again, gradients of gates out and in, of the input.
            kept = 2 * (gate_columns + 2 * case.hidden_size) + 2 * gate_columns
            stream += item * rows * (directions * kept + inputs)
    if case.kind == "decode":
        flops += 2 * rows * case.vocabulary * case.hidden_size
        weights += item * case.vocabulary * (case.hidden_size + case.input_size)
    passes = 3 if mode == "training" else 1
    return Cost(
        steps=case.length + case.num_layers - 1,
        flops=passes * flops,
        weight_bytes=weights,
        recurrent_bytes=item * gate_columns * state_columns,
        stream_bytes=stream,
        exchange_bytes=item * case.batch * state_columns,
    )


def traffic(case: Case, mode: str) -> tuple[int, int]:
    """Bytes that a schedule with the weights on chip moves without touching memory.

    Returns:
        Read on chip: the recurrent weights, once a step. Exchanged through a cluster or L2: h of
        every step, and in the backward the gradients of its gates.
    """
    counted, directions = cost(case, mode), 1 + case.bidirectional
    passes, gates = (2, 1 + case.gates) if mode == "training" else (1, 1)
    on_chip = counted.recurrent_bytes * case.length * case.num_layers * directions * passes
    rows = sum(case.lengths())
    exchanged = counted.exchange_bytes // case.batch * rows * case.num_layers * directions
    return on_chip, exchanged * gates


def floor_seconds(case: Case, mode: str, device: str, calibration: dict) -> float:
    """The least time of a call on a machine of the given rates.

    Args:
        case: what is called.
        mode: "inference" or "training".
        device: "cpu" or "cuda".
        calibration: of `timing.calibrate`.
    """
    counted = cost(case, mode)
    rates = calibration["flops"]
    product = counted.flops / rates.get(case.dtype, rates["float32"])
    moved = (counted.weight_bytes + counted.stream_bytes) / calibration["bytes"]
    if device == "cpu":
        # What a CPU streams may never leave its caches, so bytes set no floor here.
        return product
    in_cluster = counted.recurrent_bytes <= _CLUSTER_BYTES
    exchange = counted.steps * (_EXCHANGE_CLUSTER if in_cluster else _EXCHANGE_L2)
    passes = 2 if mode == "training" else 1
    return max(passes * exchange + product, moved)

"""Who is timed: torch.nn, seqkernels as dispatched and by backend, a compiled loop, the peers."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

import torch

from seqkernels.cells import CELLS

from .cases import Case
from .workload import Model, Workload

BASELINE = "torch.nn"
OURS = "seqkernels"
# Of `seqkernels.decode.greedy`, by device type; its reference is the loop timed as torch.nn.
_DECODE_BACKENDS = {"cpu": ("native",), "cuda": ("persistent", "graph")}
# Modules of bench.peers, each with NAME, LABEL, unavailable() and build(work, mode).
PEERS = ("flashrnn", "haste", "torchrl")
# What may be named beside torch.nn and seqkernels.
EXTRA = ("compile", "graph", "reference", *PEERS)


class Refused(Exception):
    """A contestant cannot run a case; the message is the reason that is published."""


@dataclass(frozen=True)
class Prepared:
    """A contestant ready to run one case in one mode.

    Attributes:
        call: what is timed.
        parameters: names of the parameters, in the order of the gradients.
        named: maps what the call returned to tensors under the names of `workload.results`;
            None for a call made by `Workload.call`.
    """

    call: Callable[[], Any]
    parameters: tuple[str, ...] = ()
    named: Callable[[Any], dict[str, torch.Tensor]] | None = None


@dataclass(frozen=True)
class Contestant:
    """A way to run a case.

    Attributes:
        name: as in the results.
        prepare: makes the call for a workload and a mode, or raises Refused.
        label: what was changed to make it run at all, such as "patched".
    """

    name: str
    prepare: Callable[[Workload, str], Prepared]
    label: str | None = None


def contestants(
    case: Case,
    device: torch.device,
    extra: Iterable[str] = (),
    backends: Iterable[str] | None = None,
) -> list[Contestant]:
    """The baseline, seqkernels as dispatched and by backend, and the further ones named.

    Args:
        case: what they will run.
        device: where.
        extra: of `EXTRA`; "graph" is left out on a CPU.
        backends: those that are named one by one beside the dispatched one; by default all of the
            device.

    Raises:
        ValueError: a further one is unknown.
    """
    from seqkernels.dispatch import BACKENDS

    extra = further(extra)
    if case.kind == "decode":
        return _decoders(device, extra)
    found = [Contestant(BASELINE, _torch), Contestant(OURS, _seqkernels(None))]
    for backend in BACKENDS:
        # The reference is the oracle: a plain loop, timed only on request.
        if backend.name == "reference" and "reference" not in extra:
            continue
        if backends is not None and backend.name not in backends:
            continue
        if not backend.devices or device.type in backend.devices:
            found.append(Contestant(f"{OURS}.{backend.name}", _seqkernels(backend.name)))
    if "compile" in extra:
        found.append(Contestant("torch.compile", _compiled))
    if "graph" in extra and device.type == "cuda":
        found.append(Contestant(f"{BASELINE}.graph", _graphed))
    for name in PEERS:
        if name in extra:
            peer = import_module(f"bench.peers.{name}")
            found.append(Contestant(peer.NAME, _peer(peer), peer.LABEL))
    return found


def further(names: Iterable[str]) -> tuple[str, ...]:
    """The names of further contestants.

    Raises:
        ValueError: one is not of `EXTRA`.
    """
    names = tuple(names)
    unknown = [name for name in names if name not in EXTRA]
    if unknown:
        raise ValueError(f"unknown contestant {unknown[0]!r}; further ones: {', '.join(EXTRA)}")
    return names


def oracle(work: Workload, mode: str) -> Prepared:
    """The package's own reference recurrence in the dtype of the workload."""
    return _seqkernels("reference")(work, mode)


def _decoders(device: torch.device, extra: tuple[str, ...]) -> list[Contestant]:
    """Who decodes: loops over cells, compiled or not, and the fused `decode.greedy`."""
    found = [Contestant(BASELINE, _torch), Contestant(OURS, _greedy(None))]
    found += [Contestant(f"{OURS}.{name}", _greedy(name)) for name in _DECODE_BACKENDS[device.type]]
    found.append(Contestant(f"{OURS}.cells", _seqkernels(None)))
    if "compile" in extra:
        found.append(Contestant("torch.compile", _compiled))
    if "graph" in extra and device.type == "cuda":
        found.append(Contestant(f"{BASELINE}.graph", _graphed))
    return found


def _greedy(backend: str | None) -> Callable[[Workload, str], Prepared]:
    def prepare(work: Workload, mode: str) -> Prepared:
        from seqkernels import decode

        model, case = work.model(torch.nn), work.case
        layers = [(c.weight_ih, c.weight_hh, c.bias_ih, c.bias_hh) for c in model.layers]
        zeros = model.embedding.weight.new_zeros(case.num_layers, case.batch, case.hidden_size)

        @torch.inference_mode()
        def call():
            return decode.greedy(
                case.cell,
                model.embedding.weight,
                layers,
                (model.projection.weight, model.projection.bias),
                (zeros,) * CELLS[case.cell].states,
                work.x,
                max_length=work.length,
                backend=backend,
            )

        return Prepared(call, named=lambda result: {"tokens": result.tokens.T})

    return prepare


def _prepared(work: Workload, mode: str, model: Model) -> Prepared:
    names = tuple(name for name, _ in model.named_parameters())
    return Prepared(work.call(model, mode), names)


def _torch(work: Workload, mode: str) -> Prepared:
    return _prepared(work, mode, work.model(torch.nn))


def _seqkernels(backend: str | None) -> Callable[[Workload, str], Prepared]:
    def prepare(work: Workload, mode: str) -> Prepared:
        import seqkernels

        model = work.model(seqkernels)
        prepared = _prepared(work, mode, model)
        if backend is None:
            return prepared

        def call():
            with seqkernels.use_backend(backend):
                return prepared.call()

        return Prepared(call, prepared.parameters)

    return prepare


def _compiled(work: Workload, mode: str) -> Prepared:
    from . import compiled

    return compiled.build(work, mode)


def _graphed(work: Workload, mode: str) -> Prepared:
    """torch.nn with all launches of the call recorded once in a CUDA graph."""
    if work.device.type != "cuda" or mode != "inference":
        raise Refused("a CUDA graph is measured for inference on a GPU")
    prepared = _torch(work, mode)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        prepared.call()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        returned = prepared.call()

    def call():
        graph.replay()
        return returned

    return Prepared(call, prepared.parameters)


def _peer(peer) -> Callable[[Workload, str], Prepared]:
    def prepare(work: Workload, mode: str) -> Prepared:
        reason = peer.unavailable()
        if reason is not None:
            raise Refused(reason)
        case = work.case
        if (
            case.kind != "sequence"
            or case.rows != "padded"
            or case.num_layers > 1
            or case.bidirectional
            or case.proj_size
        ):
            raise Refused("its adapter covers one padded layer in one direction")
        return peer.build(work, mode)

    return prepare

"""Builds in which a loop that waits for another block gives up, and says where (device_spin.h).

Each planted bug leaves out one message between blocks. The ordinary kernels would wait for it for
ever; the build with a limit ends, and its record names who waited for what.
"""

import ctypes
import functools
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from broken import altered
from emulator import ROOT, SCHEDULES, EmulatorError, build
from joined import check_layers
from parity import Case, check_sequence
from small_kernels import layers_pair, sequence_pair

pytestmark = [pytest.mark.needs("headers", "cuda_build"), pytest.mark.exhaustive]

LIMIT = 1500
ONE_LAYER = "tests/emulator/kernels/persistent_lstm.cu"
LAYERS = "tests/emulator/kernels/stacked_lstm.cu"
CLUSTER = {"processors": 132, "max_cluster": 4, "max_units": 8}
L2 = {**CLUSTER, "max_cluster": 1}
CASE = Case(4, 3, 24, bias=False)


@dataclass(frozen=True)
class Silence:
    """A message that is not sent: one text of one header replaced, and what the record must say."""

    source: str
    file: str
    old: str
    new: str
    device: tuple
    wait: int  # sk::Wait
    said: str
    round: int  # for which the others wait, and whom
    peer: int
    sanitizer: None = None


SILENCES = {
    "words": Silence(
        ONE_LAYER,
        "exchange.h",
        "sk::Word128* to = at(b, round, b.own);",
        "sk::Word128* to = at(b, round, b.own);\n      if (b.own == 1 && round == 1) return;",
        tuple(L2.items()),
        1,
        "gave up waiting for words",
        1,
        1,
    ),
    "stores into a cluster": Silence(
        ONE_LAYER,
        "exchange.h",
        "const uint32_t to = sk::shared_address(values);",
        "if (b.own == 1 && round == 1) return;\n"
        "      const uint32_t to = sk::shared_address(values);",
        tuple(CLUSTER.items()),
        2,
        "gave up waiting for an mbarrier",
        1,
        -1,
    ),
    "steps of the layer below": Silence(
        LAYERS,
        "stack.h",
        "if (b.thread == 0) sk::store_release",
        "if (b.thread == 0 && (s == 0 || b.own != 1)) sk::store_release",
        tuple({"shared_per_block": 227 << 10, **L2}.items()),
        3,
        "gave up waiting for a counter",
        2,
        1,
    ),
}


def limited(source, tree=ROOT):
    return build([source], defines=[f"SK_SPIN_LIMIT={LIMIT}"], tree=tree)


@functools.cache
def broken_build(name):
    silence = SILENCES[name]
    return limited(silence.source, altered(silence))


def check(source, library, device, schedule="round robin"):
    if source == ONE_LAYER:
        check_sequence("lstm", CASE, torch.float16, *sequence_pair(library, device, schedule))
    else:
        order = ("processors", "shared_per_block", "max_cluster", "max_units")
        device = {name: device[name] for name in order}
        forward, backward = layers_pair(library, device, schedule)
        check_layers("lstm", CASE, torch.float16, forward, run_back=backward)


def records(library):
    """The records since the last call, a row for each block: wait, block, thread, round, peer."""
    numbers = np.zeros((256, 6), np.int32)
    count = library.functions.take_spin_records(
        numbers.ctypes.data_as(ctypes.POINTER(ctypes.c_int))
    )
    return numbers[:count]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", SILENCES)
def test_a_message_that_never_comes_is_named(name, schedule):
    silence, library = SILENCES[name], broken_build(name)
    records(library)
    with pytest.raises(EmulatorError, match=silence.said):
        check(silence.source, library, dict(silence.device), schedule)
    waits, blocks, threads, rounds, peers, polls = records(library).T
    # Those that wait for the silent block, and perhaps others that wait for these.
    assert (silence.round, silence.peer) in set(zip(rounds, peers, strict=True))
    assert set(waits) == {silence.wait}
    assert set(polls) == {LIMIT}
    assert len(set(blocks)) == len(blocks)
    assert (threads >= 0).all() and (threads < 256).all()


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("device", [CLUSTER, L2], ids=["cluster", "L2"])
def test_kernels_that_are_right_do_not_give_up(device, schedule):
    library = limited(ONE_LAYER)
    check(ONE_LAYER, library, device, schedule)
    assert len(records(library)) == 0


@pytest.mark.parametrize("device", [CLUSTER, L2], ids=["cluster", "L2"])
def test_stacked_layers_that_are_right_do_not_give_up(device):
    library = limited(LAYERS)
    check(LAYERS, library, {"shared_per_block": 227 << 10, **device})
    assert len(records(library)) == 0

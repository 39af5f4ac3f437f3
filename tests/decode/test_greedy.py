"""Greedy decoding against the step loop over torch's cells: tokens, lengths, scores, state."""

import os
import subprocess
import sys

import pytest
import torch
from decoders import (
    CELLS,
    SIZES,
    Decoder,
    Sizes,
    clear_decoder,
    some_clear_decoders,
    step_loop,
)
from tolerance import assert_parity

from seqkernels.decode import greedy

BACKENDS = ["native", "reference"]


@pytest.fixture(params=[1, 2], ids=["1-thread", "2-threads"])
def threads(request):
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def compare(found, expected, theirs):
    """Equal tokens and lengths; scores and states within the rule against the float64 loops."""
    for ours, loop in zip(found, expected, strict=True):
        assert torch.equal(ours.tokens, loop.tokens)
        assert torch.equal(ours.lengths, loop.lengths)
    triples = (found, theirs, expected)
    if found[0].log_probs is not None:
        assert_parity(*(torch.cat([r.log_probs for r in rs]) for rs in triples), "log_probs")
    for number in range(len(found[0].state)):
        states = (torch.cat([r.state[number] for r in rs], 1) for rs in triples)
        assert_parity(*states, f"state {number}")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("cell", CELLS)
def test_matches_the_step_loop(cell, name, backend, threads):
    decoders = some_clear_decoders(cell, SIZES[name], 12)
    options = {"max_length": 12, "pad": -7, "log_probs": True, "backend": backend}
    found = [greedy(*decoder.arguments(), **options) for decoder, _ in decoders]
    theirs = [step_loop(decoder, 12) for decoder, _ in decoders]
    compare(found, [loop for _, loop in decoders], theirs)


@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("cell", CELLS)
def test_matches_the_step_loop_in_float64(cell, name):
    decoder = Decoder(cell, SIZES[name], 0, torch.float64)
    expected = step_loop(decoder, 12)
    found = greedy(*decoder.arguments(), max_length=12, pad=-7, log_probs=True, backend="native")
    compare([found], [expected], [expected])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["single-row", "packed-odd"])
@pytest.mark.parametrize("cell", CELLS)
def test_sixteen_bits_are_computed_in_float32(cell, name, dtype):
    decoder, expected = clear_decoder(cell, SIZES[name], 12, dtype=dtype)
    found = greedy(*decoder.arguments(), max_length=12, pad=-7, log_probs=True, backend="native")
    assert found.state[0].dtype == dtype and found.log_probs.dtype == torch.float32
    assert torch.equal(found.tokens, expected.tokens)
    for state, reference in zip(found.state, expected.state, strict=True):
        assert_parity(state, None, reference, "state")


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("cell", CELLS)
def test_sixteen_bits_give_the_tokens_of_torchs_own_loop(cell, dtype, backend):
    # Torch rounds every intermediate to 16 bits: only wide gaps survive that.
    decoder, expected = clear_decoder(cell, Sizes(2, 8, 16, 5, 1), 6, dtype=dtype, margin=0.7)
    assert torch.equal(step_loop(decoder, 6).tokens, expected.tokens)
    found = greedy(*decoder.arguments(), max_length=6, pad=-7, backend=backend)
    assert torch.equal(found.tokens, expected.tokens)


@pytest.mark.parametrize("cell", CELLS)
def test_without_biases(cell):
    decoder, expected = clear_decoder(cell, SIZES["packed-odd"], 8, bias=False)
    found = greedy(*decoder.arguments(), max_length=8, pad=-7)
    compare([found], [expected], [step_loop(decoder, 8)])


@pytest.mark.parametrize("rows", [1, 3, 37, 70])
@pytest.mark.parametrize("cell", CELLS)
def test_threads_and_reruns_change_no_bit(cell, rows):
    decoder = Decoder(cell, Sizes(rows, 64, 200, 500, 2), 3)
    results = []
    before = torch.get_num_threads()
    for count in (1, 2, 2, 3):
        torch.set_num_threads(count)
        results.append(greedy(*decoder.arguments(), max_length=15, backend="native"))
    torch.set_num_threads(before)
    for other in results[1:]:
        assert torch.equal(other.tokens, results[0].tokens)
        for a, b in zip(other.state, results[0].state, strict=True):
            assert torch.equal(a, b)


@pytest.mark.parametrize("rows", [3, 20, 70])
def test_rows_do_not_depend_on_their_batch(rows):
    decoder = Decoder("lstm", Sizes(rows, 24, 72, 90, 2), 5)
    cell, embedding, layers, projection, state, start = decoder.arguments()
    whole = greedy(*decoder.arguments(), max_length=10, eos=1)
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(1))
    mixed = greedy(
        cell, embedding, layers, projection, tuple(s[:, order] for s in state), start[order],
        max_length=10, eos=1,
    )  # fmt: skip
    assert torch.equal(mixed.tokens, whole.tokens[order])
    for a, b in zip(mixed.state, whole.state, strict=True):
        assert torch.equal(a, b[:, order])


def test_a_large_vocabulary_keeps_no_table_of_gates():
    # 5000 tokens x 4 x 1024 gates x 4 bytes: above the limit of 64 MB.
    decoder, expected = clear_decoder("lstm", Sizes(2, 8, 1024, 5000, 1), 3, margin=1e-3)
    found = greedy(*decoder.arguments(), max_length=3, pad=-7)
    compare([found], [expected], [step_loop(decoder, 3)])


def test_inside_a_parallel_caller():
    """A data loader's or server's thread: the region may get fewer threads than it asks for."""
    from concurrent.futures import ThreadPoolExecutor

    decoder = Decoder("gru", Sizes(2, 32, 256, 512, 1), 2)
    expected = greedy(*decoder.arguments(), max_length=20).tokens
    with ThreadPoolExecutor(4) as pool:
        calls = [pool.submit(greedy, *decoder.arguments(), max_length=20) for _ in range(8)]
    for call in calls:
        assert torch.equal(call.result().tokens, expected)


@pytest.mark.parametrize(
    "isa",
    ["baseline", *(pytest.param(isa, marks=pytest.mark.exhaustive) for isa in ("avx2", "avx512"))],
)
def test_every_instruction_set(isa):
    """In its own process: the set is chosen once, or the best where the processor lacks it."""
    script = (
        "import sys; sys.path[:0] = sys.argv[1:]\n"
        "import torch\n"
        "from decoders import CELLS, SIZES, clear_decoder\n"
        "from seqkernels.decode import greedy\n"
        "for cell in CELLS:\n"
        "    for name in ('two-rows-odd', 'packed-odd'):\n"
        "        for dtype in (torch.float32, torch.float64):\n"
        "            decoder, loop = clear_decoder(cell, SIZES[name], 8, dtype=dtype)\n"
        "            found = greedy(*decoder.arguments(), max_length=8, pad=-7, backend='native')\n"
        "            assert torch.equal(found.tokens, loop.tokens), (cell, name, dtype)\n"
        "            torch.testing.assert_close(found.state[0].double(), loop.state[0], atol=1e-4,"
        " rtol=1e-4)\n"
    )
    here = os.path.dirname(__file__)
    environment = {**os.environ, "SEQKERNELS_CPU_ISA": isa}
    done = subprocess.run(
        [sys.executable, "-c", script, here, *sys.path],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr

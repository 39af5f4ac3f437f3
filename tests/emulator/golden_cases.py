"""What every wrapper in csrc/cuda/ptx/device*.h must do, for the emulator and for a GPU alike.

A case calls launchers of kernels/golden.cu through `call(name, *arguments)`, which changes the
arrays in place, and asserts what they then hold.
"""

import numpy as np
import torch
from emulator import poisoned

SOURCES = [
    f"tests/emulator/kernels/{name}.cu" for name in ("golden", "exchange", "lstm_persistent")
]
FLOATS = {"half": torch.float16, "bfloat16": torch.bfloat16}


def case_ldmatrix(call):
    matrices = torch.arange(256, dtype=torch.int16)
    for count in (1, 2, 4):
        words = poisoned(count, 32, dtype=torch.int32)
        call("test_ldmatrix", matrices, words, count, None)
        # Lane 4 r + q holds elements 2 q and 2 q + 1 of row r.
        found = words.view(torch.int16).view(count, 8, 8)
        assert torch.equal(found, matrices.view(4, 8, 8)[:count])


def case_mma(call):
    for name, dtype in FLOATS.items():
        for gather in (0, 1):
            a, b = torch.randn(16, 16).to(dtype), torch.randn(8, 16).to(dtype)
            d = torch.randn(16, 8)
            expected = d.double() + a.double() @ b.double().T
            call(f"test_mma_{name}", a, b, d, gather, None)
            assert (d - expected).abs().max() < 1e-5


def truncated(x: torch.Tensor) -> torch.Tensor:
    """The part of a float32 that the tensor core reads as TF32."""
    return (x.view(torch.int32) & -8192).view(torch.float32)


def rounded(x: torch.Tensor) -> torch.Tensor:
    """The nearest TF32, ties away from zero."""
    return truncated((x.view(torch.int32) + 4096).view(torch.float32))


def case_mma_tf32(call):
    for gather in (0, 1):
        a, b, start = torch.randn(16, 8), torch.randn(8, 8), torch.randn(16, 8)
        d = start.clone()
        call("test_mma_tf32", rounded(a), rounded(b), d, gather, None)
        expected = start.double() + rounded(a).double() @ rounded(b).double().T
        assert (d - expected).abs().max() < 5e-6
        d = start.clone()
        call("test_mma_tf32", a, b, d, gather, None)
        expected = start.double() + truncated(a).double() @ truncated(b).double().T
        assert (d - expected).abs().max() < 5e-6


def case_functions(call):
    x = torch.cat([torch.linspace(-30, 30, 1000), torch.randn(1000), torch.tensor([0.0, 1e-30])])
    n = len(x)
    y, bits = poisoned(5, n), poisoned(n, dtype=torch.int32)
    call("test_functions", x, y, bits, n, None)
    wide = x.double()
    assert ((y[0] - wide.exp()) / wide.exp()).abs().max() < 5e-6
    assert (y[1] - wide.sigmoid()).abs().max() < 3e-7
    assert (y[2] - wide.tanh()).abs().max() < 6e-7
    assert (y[3] - wide.tanh()).abs().max() < 2**-10.5
    assert torch.equal(y[4].double(), (wide * wide - 1).float().double())
    assert torch.equal(bits, rounded(x).view(torch.int32))


def case_functions_at_the_ends(call):
    x = torch.tensor([float("inf"), -float("inf"), float("nan"), 200.0, -200.0, -88.0])
    y, bits = poisoned(5, 6), poisoned(6, dtype=torch.int32)
    call("test_functions", x, y, bits, 6, None)
    assert y[0, 0] == float("inf") and y[0, 1] == 0 and y[0, 3] == float("inf")
    for row, low in ((1, 0), (2, -1), (3, -1)):
        assert y[row, [0, 3]].tolist() == [1, 1] and y[row, 2].isnan()
        assert (y[row, [1, 4, 5]] - low).abs().max() < 1e-37


def case_conversions(call):
    x = torch.cat(
        [
            torch.randn(500) * 100,
            torch.randn(500) * 1e-5,
            torch.tensor([0.0, -0.0, 1e30, -1e30, float("inf"), 65519.0, 65520.0, 2**-25, 2**-24]),
            1 + torch.arange(31) * 2**-12,  # ties
        ]
    )
    for name, dtype in FLOATS.items():
        y = poisoned(len(x))
        call(f"test_conversions_{name}", x, y, len(x), None)
        assert torch.equal(y, x.to(dtype).float())


def case_warp(call):
    x, y = torch.randperm(32, dtype=torch.int32), poisoned(10, 32, dtype=torch.int32)
    call("test_warp", x, y, None)
    lane = torch.arange(32)
    assert torch.equal(y[0], x[(lane * 7 + 3) % 32])
    assert torch.equal(y[1], x[lane // 8 * 8 + 5])
    assert torch.equal(y[2], x[lane ^ 9])
    assert torch.equal(y[3], x[torch.where(lane >= 3, lane - 3, lane)])
    assert torch.equal(y[4], x[torch.where(lane % 16 + 3 < 16, lane + 3, lane)])
    ballot = sum(1 << i for i in range(32) if x[i] > 16)
    assert (y[5].numpy().view(np.uint32) == ballot).all()
    assert (y[6] == 1).all() and (y[7] == 1).all() and (y[8] == 31 * 16).all()
    assert torch.equal(y[9], torch.where(lane & 4 > 0, x[lane ^ 8], torch.tensor(-1)))


def case_clock(call):
    clocks = poisoned(2, 32, dtype=torch.int64)
    call("test_clock", clocks, None)
    # Lanes of a warp read it together or one after another, but none before the barrier.
    assert clocks[0].min() >= 0 and clocks[1].min() > clocks[0].max()


def case_cp_async(call):
    x, y = torch.randn(64), poisoned(3, 64)
    call("test_cp_async", x, y, None)
    index = torch.arange(64)
    assert torch.equal(y[0], torch.where(index // 4 % 3 != 0, x, 0.0))
    assert torch.equal(y[1], x[index ^ 33]) and torch.equal(y[2], x)


def case_named_barriers(call):
    x, y = torch.randint(1000, (40,), dtype=torch.int32), poisoned(40, dtype=torch.int32)
    call("test_named_barriers", x, y, 40, None)
    assert torch.equal(y, x + 1)


def case_mbarrier(call):
    y = poisoned(9, 32, dtype=torch.int32)
    call("test_mbarrier", y, 9, None)
    expected = 100 * torch.arange(9)[:, None] + (torch.arange(32) ^ 1)
    assert torch.equal(y, expected.int())


def case_cluster(call):
    for blocks, cluster in ((2, 2), (8, 4), (8, 8), (4, 1), (16, 16)):
        x = torch.randint(2**31 - 1, (blocks * 32,), dtype=torch.int32)
        y = poisoned(8, blocks * 32, dtype=torch.int32)
        call("test_cluster", x, y, blocks, cluster, None)
        received = x.view(-1, cluster, 32).roll(1, 1).flatten()
        for way in (0, 1, 2, 3, 4, 6):
            assert torch.equal(y[way], received), f"way {way}, cluster {cluster}"
        assert torch.equal(y[5], x)
        rank = torch.arange(blocks * 32) // 32 % cluster
        assert torch.equal(y[7], (rank * 100 + cluster).int())


def case_global(call):
    blocks = 12
    words, wide = torch.zeros(blocks, dtype=torch.int64), torch.zeros(blocks, 2, dtype=torch.int64)
    counter, y = torch.zeros(3, dtype=torch.int32), poisoned(4, blocks, dtype=torch.int64)
    call("test_global", words, wide, counter, y, blocks, None)
    following = (torch.arange(blocks) + 1) % blocks
    assert torch.equal(y[0], (following + 1) * 2**32 + 7)
    assert (y[1] == -1).all() and (y[2] == 2 * blocks).all() and (y[3] == 42).all()
    assert counter.tolist() == [2 * blocks, 2 * blocks, 42]


def case_exchange(call):
    for kind in ("cluster", "counter", "flagged"):
        x = torch.arange(8, dtype=torch.int32) * 5
        values = x.tolist()
        for _ in range(50):
            values = [(own + sum(values)) % 97 for own in range(8)]
        arguments = {
            "cluster": (),
            "counter": (
                poisoned(2, 8, dtype=torch.int32),
                torch.zeros(1, dtype=torch.int32),
            ),
            "flagged": (torch.zeros(2, 8, dtype=torch.int64),),
        }[kind]
        call(f"test_exchange_{kind}", x, *arguments, 8, 50, 0, None)
        assert x.tolist() == values, kind


CASES = {name[5:]: case for name, case in globals().items() if name.startswith("case_")}

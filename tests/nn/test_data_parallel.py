"""DistributedDataParallel: two processes give the gradients of one."""

import gc
import time

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from tolerance import assert_parity
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import seqkernels

PROCESSES = 2


class _Model(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm = seqkernels.LSTM(4, 6, 2, bidirectional=True)
        self.gru = seqkernels.GRU(12, 5)
        self.cell = seqkernels.RNNCell(5, 3)

    def forward(self, x):
        x, _ = self.gru(self.lstm(x)[0])
        return self.cell(x[-1])


def _model():
    torch.manual_seed(0)
    return _Model().double()


def _batch():
    return torch.randn(7, 2 * PROCESSES, 4, generator=torch.Generator().manual_seed(1)).double()


def _gradients(rank):
    model = DistributedDataParallel(_model())
    share = _batch().chunk(PROCESSES, 1)[rank]
    for _ in range(2):  # the second backward runs on rebuilt buckets
        model.zero_grad()
        model(share).square().mean().backward()
    return [p.grad for p in model.parameters()]


def _work(rank, store, results):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=PROCESSES)
    try:
        torch.save(_gradients(rank), f"{results}/{rank}.pt")
    finally:
        # The wrapped model goes first: with the last reference to the group it would wait for
        # gloo's thread with the interpreter's lock held, which that thread may be waiting for.
        gc.collect()
        dist.destroy_process_group()


def _join(processes, seconds):
    """Wait for processes; after `seconds`, end them and fail."""
    until = time.monotonic() + seconds
    while not processes.join(timeout=1.0):
        if time.monotonic() > until:
            for process in processes.processes:
                process.kill()
            raise TimeoutError(f"the processes did not end within {seconds} s")


def test_gradients_of_two_processes(tmp_path):
    arguments = (f"file://{tmp_path}/store", str(tmp_path))
    _join(mp.spawn(_work, arguments, nprocs=PROCESSES, join=False), 300.0)
    model = _model()
    model(_batch()).square().mean().backward()
    for rank in range(PROCESSES):
        grads = torch.load(tmp_path / f"{rank}.pt")
        for (name, parameter), grad in zip(model.named_parameters(), grads, strict=True):
            assert_parity(grad, None, parameter.grad, f"{name} in process {rank}")

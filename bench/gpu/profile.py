"""One forward and one backward for ncu: an LSTM in float16, T = 32, N = 16, H = 768.

ncu ... python -m bench.gpu.profile [--rehearse]
"""

import sys

from . import worker


def launch(machine) -> bool:
    """Make the two launches; whether the gradients are numbers."""
    import torch

    steps, batch, hidden = machine.full_or_tiny((32, 16, 768), (2, 3, 40))
    gates = 4 * hidden
    shapes = [(steps, batch, gates), (gates, hidden), (gates,), (batch, hidden), (batch, hidden)]
    values = [torch.randn(s).div(hidden**0.5).to(machine.device, torch.float16) for s in shapes]
    layout = (None, None, None, False)
    forward, backward = (machine.op(f"lstm_sequence_persistent{end}") for end in ("", "_backward"))
    output, h_n, c_n, c_sequence, saved = forward(*values, *layout, True)
    kept = (*values[1:], output, c_sequence, saved, *layout)
    grads = backward(output, h_n, c_n, None, *kept)
    return all(bool(grad.isfinite().all()) for grad in grads)


def main(arguments: list[str]) -> int:
    """Make the launches and return the exit status."""
    print("profile: importing torch", flush=True)  # long under ncu, which is silent meanwhile
    try:
        machine = worker.open_machine("release", "--rehearse" in arguments)
    except worker.Unusable as error:
        print(error)
        return error.status
    well = launch(machine)
    print("profile: done" if well else "profile: a gradient is not finite", flush=True)
    return int(not well)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

"""Run a process that may hang, and leave nothing of it behind. Torch-free."""

import contextlib
import os
import queue
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
# Silence allowed before the first line: importing torch from a cold disk takes 15 to 30 s.
START_SECONDS = 60


def members(session: int) -> list[int]:
    """Processes of a session. A process group is not enough: ninja gives each command its own."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            state, _, _, own = path.read_text().rpartition(")")[2].split()[:4]
            if int(own) == session and state != "Z":
                found.append(int(path.parent.name))
    return found


def kill(process: subprocess.Popen) -> None:
    """End a process and all that it has started."""
    for _ in range(40):  # one may start another meanwhile; one that a driver holds does not end
        running = members(process.pid)
        for pid in running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if process.poll() is not None and not running:
            return
        time.sleep(0.05)


def read(stream, lines: queue.SimpleQueue) -> None:
    """Pass on the lines of a process, and at its end None."""
    with stream:
        for line in stream:
            lines.put(line)
    lines.put(None)


def follow(
    command: Sequence[str],
    environment: Mapping[str, str],
    seconds: float,
    silence: float,
    hear: Callable[[str], None],
) -> int | str:
    """Run a command in a session of its own, to its end, and leave nothing of it running.

    Args:
        command: its words.
        environment: of the process.
        seconds: after which it is killed.
        silence: seconds without a line after which it is killed.
        hear: called with every line.

    Returns:
        Its exit status, negative for a signal; or "hung", or "out of time".
    """
    end, wait = time.monotonic() + seconds, max(START_SECONDS, silence)
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=environment,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    lines: queue.SimpleQueue = queue.SimpleQueue()
    threading.Thread(target=read, args=(process.stdout, lines), daemon=True).start()
    try:
        while (line := lines.get(timeout=max(0.0, min(wait, end - time.monotonic())))) is not None:
            hear(line)
            wait = silence
        return process.wait(10)
    except (queue.Empty, subprocess.TimeoutExpired):
        return "hung" if time.monotonic() < end else "out of time"
    finally:
        kill(process)

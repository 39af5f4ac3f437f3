"""What a GPU has to show, in calls of three minutes: `make gpu CALL=first`.

Runs the stages of a call (bench/gpu/calls.py) one after another, and never imports torch itself.
Measuring stages run inside workers (bench/gpu/worker.py). A worker that falls silent is killed with
its children, the case it was at is recorded as hung, and a new worker goes on after it. No stage
that fails stops another. Each has its share of the time left; what one does not need passes on. The
table of speeds is printed last. Exits with 0 only if everything ran and all is well.

Files come to $OUT (by default build/gpu/CALL): a line of JSON for every case, and in stages.jsonl
what became of every stage and the end of what it printed. The carried build (`make gpu-build`) is
used; one that is stale or does not import is built again, once.

Usage: python scripts/gpu.py first|second|third [--only STAGE[:TEXT] ...] [--minutes 3] [--resume]
       python scripts/gpu.py publish FOLDER
"""

import argparse
import itertools
import json
import os
import re
import shutil
import signal
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from bench.gpu import protocol  # noqa: E402
from bench.gpu.calls import CALLS, PYTHON, Stage, stages  # noqa: E402
from bench.gpu.process import follow  # noqa: E402
from bench.gpu.table import table  # noqa: E402

WORKER = [PYTHON, "-m", "bench.gpu.worker"]
BUILD, BUILD_SECONDS = [PYTHON, "scripts/gpu_build.py"], 150
RESTARTS = 5  # of a stage
LARGEST_FILE = 16 << 20
KEPT_OUTPUT = 100_000  # characters of what a stage printed
MESSAGE = re.compile(r'\{"(begin|end|ready|unusable)": .*\}$')


@dataclass
class Place:
    """Where a worker is, by its own words."""

    stage: str = ""
    case: str | None = None
    file: str = ""
    unusable: str = ""
    began: float = 0.0  # the stage
    heard: float = 0.0  # the last line


class Call:
    """One run of a call.

    Args:
        options: of the command line.
        planned: the stages to run.
        out: the folder of its files.
    """

    def __init__(self, options: argparse.Namespace, planned: list[Stage], out: Path):
        self.options, self.planned, self.out = options, planned, out
        self.end = time.monotonic() + 60 * options.minutes
        self.to_come = {stage.label: stage.seconds for stage in planned}
        self.results: dict[str, str] = {}
        self.text, self.built = "", False
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        # pytest cuts its summary to the width of the terminal that it does not have.
        own = {"PYTHONPATH": path, "PYTHONUNBUFFERED": "1", "COLUMNS": "200"}
        self.environment = {**os.environ, **own}

    def run(self) -> bool:
        """Run all stages; whether all is well."""
        try:
            by_build = itertools.groupby(self.planned, lambda stage: stage.build or stage.name)
            for group in [list(group) for _, group in by_build]:
                self.work(group) if group[0].build else self.command(group[0])
        finally:
            for name in list(self.to_come):
                self.over(name, "stopped")
        return set(self.results.values()) <= {"ok"}

    def seconds_left(self) -> float:
        """Of the call."""
        return max(0.0, self.end - time.monotonic())

    def share(self, name: str) -> float:
        """Seconds for a stage: its part of the time left, among the stages still to come."""
        return self.seconds_left() * self.to_come[name] / sum(self.to_come.values())

    def over(self, name: str, result: str, **more) -> None:
        """Record and print what became of a stage."""
        self.to_come.pop(name, None)
        self.results[name] = result
        more = {key: value for key, value in more.items() if value}
        record = {"case": name, "result": result, **more, "output": self.text[-KEPT_OUTPUT:]}
        protocol.append(self.out / "stages.jsonl", record)
        self.text = ""
        short = {k: len(v) if isinstance(v, list) else str(v)[:200] for k, v in more.items()}
        print(f"{name:16} {result:12}", *(f"{k} {v}" for k, v in short.items()), flush=True)

    def command(self, stage: Stage) -> None:
        """Run a stage that is a command; the files it leaves in its scratch folder are kept."""
        if shutil.which(stage.command[0]) is None:
            self.over(stage.name, "failed", reason=f"{stage.command[0]} is not installed")
            return
        seconds, begin = self.share(stage.name), time.monotonic()
        scratch = ROOT / "build" / f"scratch-{stage.name}"
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        # A benchmark's last case may begin at the end of its time.
        places = {"scratch": scratch, "out": self.out, "minutes": max(0.0, seconds - 15) / 60}
        environment = {k: v.format(**places) for k, v in stage.environment.items()}
        status = follow(
            [word.format(**places) for word in stage.command],
            self.environment | environment,
            seconds,
            stage.silence,
            self.keep,
        )
        files = [path for path in scratch.rglob("*") if path.is_file()]
        large = [path.name for path in files if path.stat().st_size > LARGEST_FILE]
        for path in files:
            if path.name not in large:
                path.replace(self.out / path.name)
        facts = {"note": stage.note, "large": large, "seconds": round(time.monotonic() - begin, 1)}
        facts["last"] = self.text.strip().rpartition("\n")[2].strip("= ")[:150]
        if status == 0 and not files and any("{scratch}" in word for word in stage.command):
            status, facts["reason"] = 1, "it left no file"
        result = status if isinstance(status, str) else "failed" if status else "ok"
        self.over(stage.name, result, **facts)

    def keep(self, line: str) -> None:
        """Remember what a process printed."""
        self.text += line

    def work(self, group: list[Stage]) -> None:
        """Run stages in a worker, and in another one after every case that ends it."""
        waiting = {stage.label: stage for stage in group}
        restarts: Counter = Counter()
        while waiting:
            place = Place()
            # With the spin build also Triton's kernels give up waiting.
            limit = {"SEQKERNELS_SPIN_LIMIT": str(1 << 20)} if group[0].build == "spin" else {}
            status = follow(
                self.worker(list(waiting.values())),
                self.environment | limit,
                self.seconds_left(),
                self.options.silence,
                lambda line, place=place: self.hear(line, place, waiting),
            )
            if waiting and not (status == protocol.NO_BUILD and self.build()):
                self.recover(status, place, waiting, restarts)

    def recover(self, status: int | str, place: Place, waiting: dict, restarts: Counter) -> None:
        """Record the case at which a worker ended; take from `waiting` what cannot go on."""
        how = "was silent" if status == "hung" else f"ended with status {status}"
        if place.stage not in waiting or status == "out of time":
            result = status if status == "out of time" else "failed"
            for name in waiting:
                self.over(name, result, reason=place.unusable or f"the worker {how}")
            waiting.clear()
            return
        if place.case is not None:
            result = "hung" if status == "hung" else "crashed"
            record = {"case": place.case, "result": result, "reason": f"the worker {how}"}
            protocol.append(self.out / place.file, record)
            print(f"  {place.case}: {result}, the worker {how}", flush=True)
        # What the stage has used is gone; how long it was silent is not held against it.
        used = place.heard - place.began
        self.to_come[place.stage] = max(1.0, self.to_come[place.stage] - used)
        restarts[place.stage] += 1
        between_cases = place.case is None and status != protocol.LOST
        if between_cases or restarts[place.stage] > RESTARTS:
            reason = f"the worker {how} between cases" if between_cases else "too many restarts"
            del waiting[place.stage]
            self.finish(place.stage, place.file, reason=reason)

    def worker(self, group: list[Stage]) -> list[str]:
        """The command that runs the stages of a group that are left."""
        command = [*WORKER, "--out", str(self.out), "--build", group[0].build]
        command += ["--rehearse"] if self.options.rehearse else []
        for stage in group:
            command += ["--seconds", f"{stage.label}={self.share(stage.label):.1f}"]
        return [*command, *(stage.label for stage in group)]

    def hear(self, line: str, place: Place, waiting: dict[str, Stage]) -> None:
        """Take in a line of a worker."""
        place.heard = time.monotonic()
        found = MESSAGE.search(line)
        try:
            message = json.loads(found[0]) if found else {}
        except ValueError:  # something else was written into the line
            message = {}
        if not message:
            self.keep(line)
        place.unusable = message.get("unusable", place.unusable)
        if name := message.get("begin"):
            place.began = place.began if name == place.stage else place.heard
            place.stage, place.case = name, message.get("case")
            place.file = message.get("file", "")
        elif "case" in message:
            place.case = None
            if message["result"] != "ok":
                reason = message["reason"][:200]
                print(f"  {message['case']}: {message['result']}, {reason}", flush=True)
        elif name := message.get("end"):
            del waiting[name]
            rest = {key: message[key] for key in ("left_out", "reason")}
            self.finish(name, message["file"], seconds=round(place.heard - place.began, 1), **rest)

    def finish(self, name: str, file: str, **more) -> None:
        """Record a worker's stage by what its file holds."""
        cases = Counter(r["result"] for r in protocol.records(self.out / file)) if file else {}
        well = set(cases) <= {"ok"} and not more.get("reason")
        result = "out of time" if well and more.get("left_out") else "ok" if well else "failed"
        self.over(name, result, cases=dict(cases), **more)

    def build(self) -> bool:
        """Build for the Python at hand, unless that was tried before; whether it worked."""
        if self.built:
            return False
        self.built, seconds = True, min(BUILD_SECONDS, self.seconds_left())
        status = follow(BUILD, self.environment, seconds, seconds, self.keep)
        self.over("build", "ok" if status == 0 else "failed", reason=status and f"status {status}")
        return status == 0


def stop(*_) -> None:
    """End everything in order; asked again, go on doing so."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    sys.exit(143)


def prepare(out: Path, resume: bool) -> None:
    """Make the folder of a call, empty unless the call is resumed.

    Raises:
        SystemExit: it holds what no call has written.
    """
    out.mkdir(parents=True, exist_ok=True)
    there = [] if resume else list(out.iterdir())
    if there and not (out / "stages.jsonl").exists():
        raise SystemExit(f"{out} holds files of something else than a call; OUT names another")
    for path in there:
        path.unlink()


def chosen(options: argparse.Namespace, parser: argparse.ArgumentParser) -> list[Stage]:
    """The stages of the call that the command line asks for."""
    planned = stages(options.call, options.rehearse)
    if options.only is None:
        return planned
    texts = dict(name.partition(":")[::2] for name in options.only)
    if unknown := texts.keys() - {stage.name for stage in planned}:
        names = ", ".join(stage.name for stage in planned)
        parser.error(f"unknown stage {min(unknown)!r}; stages of {options.call}: {names}")
    found = [replace(s, text=texts[s.name]) for s in planned if s.name in texts]
    if commands := [stage.name for stage in found if stage.text and not stage.build]:
        parser.error(f"{commands[0]} runs whole: it has no cases to choose from")
    return found


def main(arguments: list[str] | None = None) -> int:
    """Run a call, or publish one, and return the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("call", choices=(*CALLS, "publish"))
    parser.add_argument("folder", type=Path, nargs="?", help="of the call to publish")
    parser.add_argument("--only", nargs="+", metavar="STAGE[:TEXT]", help="stages, or some cases")
    parser.add_argument("--minutes", type=float, default=3, help="for the call")
    parser.add_argument("--silence", type=float, default=10, help="seconds; a worker hangs beyond")
    parser.add_argument("--resume", action="store_true", help="only what is not done yet")
    parser.add_argument("--rehearse", action="store_true", help="on the CPU emulator, tiny sizes")
    parser.add_argument("--list", action="store_true", help="print the stages and their seconds")
    options = parser.parse_args(arguments)
    if (options.call == "publish") != (options.folder is not None):
        parser.error("publish, and nothing else, takes a folder")
    if options.call == "publish":
        from bench.gpu.publish import publish

        try:
            print("\n".join(f"written: {path}" for path in publish(options.folder)))
        except ValueError as error:
            parser.error(str(error))
        return 0
    planned = chosen(options, parser)
    if options.list:
        print("\n".join(f"{stage.name:16} {stage.seconds:3} s" for stage in planned))
        return 0
    signal.signal(signal.SIGTERM, stop)
    out = Path(os.environ.get("OUT") or ROOT / "build" / "gpu" / options.call).resolve()
    prepare(out, options.resume)
    done = {r["case"] for r in protocol.records(out / "stages.jsonl") if r["result"] == "ok"}
    call = Call(options, [stage for stage in planned if stage.label not in done], out)
    try:
        well = call.run()
    finally:
        print(table(out / "ratios.jsonl"), flush=True)
    return int(not well)


if __name__ == "__main__":
    sys.exit(main())

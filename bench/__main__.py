"""Command line: `python -m bench run|list|model|recipes|report|compare|choices`."""

import argparse
import sys
import time
from dataclasses import replace
from pathlib import Path


def main(arguments: list[str] | None = None) -> int:
    """Run a command and return the exit status."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    run = commands.add_parser("run", help="measure suites and write their JSON, tables and plots")
    run.add_argument("suites", nargs="+", metavar="SUITE", help="a suite, or all; see list")
    run.add_argument("--quick", action="store_true", help="few samples, no memory: a first look")
    run.add_argument("--only", default="", metavar="TEXT", help="cases whose id contains TEXT")
    run.add_argument(
        "--with",
        dest="extra",
        nargs="*",
        metavar="NAME",
        default=None,
        help="further contestants instead of the suite's own: compile, graph, reference,"
        " flashrnn, haste, torchrl; none named, none measured",
    )
    run.add_argument("--output", type=Path, help="folder for the JSON instead of bench/results")
    run.add_argument("--rounds", type=_count, help="samples of every contestant")
    run.add_argument(
        "--minutes",
        type=float,
        help="time for all suites, in equal shares; cases for which none is left are noted",
    )
    _machine(run)

    listing = commands.add_parser("list", help="suites, why they exist, and their cases")
    listing.add_argument("--cases", action="store_true", help="the cases too")

    model = commands.add_parser("model", help="what seqkernels would gain for a model of yours")
    model.add_argument("--layer", choices=("lstm", "gru", "rnn_tanh", "rnn_relu"), required=True)
    model.add_argument("--input-size", type=_count, required=True)
    model.add_argument("--hidden-size", type=_count, required=True)
    model.add_argument("--num-layers", type=_count, default=1)
    model.add_argument("--bidirectional", action="store_true")
    model.add_argument("--proj-size", type=int, default=0)
    model.add_argument("--batch", type=_count, required=True, help="rows N")
    model.add_argument("--length", type=_count, required=True, help="steps T")
    model.add_argument("--rows", choices=("padded", "packed", "lengths"), default="padded")
    model.add_argument(
        "--dtype", default="float32", choices=("float64", "float32", "tf32", "bfloat16", "float16")
    )
    model.add_argument("--quick", action="store_true")
    _machine(model)

    recipes = commands.add_parser(
        "recipes", help="train the recipes of examples/recipes with torch.nn and with seqkernels"
    )
    recipes.add_argument("names", nargs="*", metavar="NAME", help="some of them; not published")
    recipes.add_argument("--rounds", type=_count, help="runs of each with each library")

    report = commands.add_parser("report", help="write the tables and plots from the JSON")
    report.add_argument("--check", action="store_true", help="write nothing; fail if any is stale")

    compare = commands.add_parser("compare", help="compare two result files or folders")
    compare.add_argument("old", type=Path)
    compare.add_argument("new", type=Path)
    compare.add_argument(
        "--regression",
        type=float,
        default=0.1,
        metavar="SHARE",
        help="fail if anything is slower by more than this share (0.1)",
    )
    compare.add_argument(
        "--relative", action="store_true", help="in units of torch.nn's time of the same run"
    )

    choices = commands.add_parser(
        "choices", help="where dispatch did not take the fastest backend: sets its thresholds"
    )
    choices.add_argument("path", type=Path, nargs="?", help="file or folder; bench/results")

    options = parser.parse_args(arguments)
    try:
        return globals()[f"_{options.command}"](options)
    except ValueError as error:
        print(f"{parser.prog}: {error}", file=sys.stderr)
        return 2


def _count(text: str) -> int:
    """A number of things, at least one."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"{value} is below 1")
    return value


def _machine(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", choices=("cpu", "cuda"), help="default: cuda if there is one")
    parser.add_argument("--threads", type=_count, help="CPU threads; default: torch's")


def _device(options: argparse.Namespace):
    import torch

    from .timing import threads

    threads(options.threads)
    kind = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    if kind == "cuda" and not torch.cuda.is_available():
        raise ValueError("there is no GPU")
    return torch.device(kind)


def _run(options: argparse.Namespace) -> int:
    from . import report, results, tables
    from .cases import select
    from .contestants import further
    from .runner import run_suite
    from .timing import FULL, QUICK

    start = time.monotonic()
    device = _device(options)
    effort = QUICK if options.quick else FULL
    if options.rounds:
        effort = replace(effort, rounds=options.rounds)
    extra = None if options.extra is None else further(options.extra)
    # A part of a suite, or a quick look at it, must not replace its published results.
    timed = options.minutes is not None
    published = not (options.quick or options.only or options.output or timed)
    aside = options.output or results.BENCH.parent / "build" / "bench"
    root = results.RESULTS if published else aside
    suites = select(options.suites, device.type)
    suites = [s for s in suites if any(options.only in c.id for c in s.on(device.type))]
    if not suites:
        raise ValueError(f"no case there has {options.only!r} in its id; see list --cases")
    for i, suite in enumerate(suites):
        deadline = None
        if timed:
            now = time.monotonic()
            # What a suite does not need passes on to the later ones.
            deadline = now + (start + 60 * options.minutes - now) / (len(suites) - i)
        document = run_suite(
            suite,
            device,
            effort,
            with_memory=not options.quick,
            only=options.only,
            extra=extra,
            deadline=deadline,
        )
        if "left_out" in document["settings"] and not document["results"]:
            print(f"\n{suite.name}: no time was left")
            continue
        path = results.write(document, root)
        parts = (f"\n{suite.name}: {suite.why}", tables.brief(document), tables.others(document))
        print("\n\n".join((*parts, f"written: {path}")))
    if published:
        for path in report.write():
            print(f"written: {path}")
    return 0


def _list(options: argparse.Namespace) -> int:
    from .cases import DEVICES, SUITES

    for suite in SUITES.values():
        counts = ", ".join(f"{len(suite.on(d))} on {d}" for d in DEVICES if suite.on(d))
        print(f"{suite.name} ({counts})\n    {suite.why}")
        if options.cases:
            for case in suite.cases:
                print(f"    {case.id} [{', '.join(case.devices)}]")
    return 0


def _model(options: argparse.Namespace) -> int:
    from . import model
    from .cases import Case
    from .timing import FULL, QUICK

    case = Case(
        cell=options.layer,
        length=options.length,
        batch=options.batch,
        input_size=options.input_size,
        hidden_size=options.hidden_size,
        num_layers=options.num_layers,
        bidirectional=options.bidirectional,
        proj_size=options.proj_size,
        dtype=options.dtype,
        rows=options.rows,
    )
    device = _device(options)
    if options.dtype == "tf32" and device.type == "cpu":
        raise ValueError("a CPU has no TF32 products; --dtype float32 is what it would run")
    print(model.table(case, device, QUICK if options.quick else FULL))
    return 0


def _recipes(options: argparse.Namespace) -> int:
    from . import recipes, report, results, tables

    if unknown := set(options.names) - recipes.RECIPES.keys():
        raise ValueError(f"no recipe {min(unknown)}; there are {', '.join(recipes.RECIPES)}")
    document = recipes.run(options.names or list(recipes.RECIPES), options.rounds or recipes.ROUNDS)
    print(f"{tables.heading(document)}\n\n{recipes.table(document)}")
    if not options.names:
        for path in (results.save(document, "recipes"), *report.write()):
            print(f"written: {path}")
    return 0


def _report(options: argparse.Namespace) -> int:
    from . import report

    if options.check:
        wrong = report.stale()
        print("\n".join(wrong) or "tables and plots are those of the JSON")
        return 1 if wrong else 0
    for path in report.write():
        print(f"written: {path}")
    return 0


def _compare(options: argparse.Namespace) -> int:
    from .compare import report

    text, regressed = report(options.old, options.new, options.regression, options.relative)
    print(text)
    return 1 if regressed else 0


def _choices(options: argparse.Namespace) -> int:
    from . import choices, results
    from .compare import documents

    print(choices.report(documents(options.path or results.RESULTS)))
    return 0


if __name__ == "__main__":
    sys.exit(main())

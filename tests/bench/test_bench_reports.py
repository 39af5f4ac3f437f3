"""Schema, tables, plots, pages and comparisons, from a document with round numbers."""

import copy
import importlib.metadata
import json
from pathlib import Path

import documents
import pytest
from matplotlib.text import Text

from bench import compare, plot, report, results, tables
from bench.__main__ import main
from bench.cases import SUITES
from bench.contestants import BASELINE, OURS
from bench.targets import target
from seqkernels import figures


def test_published_results_keep_the_schema_and_their_reports_are_fresh():
    for path in results.stored():
        document = results.read(path)
        assert path.parent.name == results.folder(document["device"])
        assert path.stem == document["suite"]
        assert not document["settings"]["quick"]
    assert report.stale() == []


def test_schema():
    document = documents.example()
    assert list(results.problems(document)) == []

    def broken(change):
        wrong = copy.deepcopy(document)
        change(wrong)
        return list(results.problems(wrong))

    assert broken(lambda d: d.pop("why")) == ["$: 'why' is a required property"]
    assert broken(lambda d: d.update(extra=1)) == [
        "$: Additional properties are not allowed ('extra' was unexpected)"
    ]
    assert broken(lambda d: d["device"].update(threads=0)) == [
        "$.device.threads: 0 is less than the minimum of 1"
    ]
    assert broken(lambda d: d["device"].update(threads=True))[0].endswith("not of type 'integer'")
    assert broken(lambda d: d["results"][1].update(mode="both")) == [
        "$.results[1].mode: 'both' is not one of ['inference', 'training']"
    ]
    assert broken(lambda d: d["results"][0]["contestants"][0]["error"].update(h_n=None)) == [
        "$.results[0].contestants[0].error.h_n: None is not of type 'number', 'string'"
    ]
    assert broken(lambda d: d.update(schema=2)) == ["$.schema: 1 was expected"]


def test_write_and_read(tmp_path):
    path = results.write(documents.example(), tmp_path)
    assert path == tmp_path / "test-cpu-9000-2t" / "cpu.json"
    assert results.read(path) == documents.example()
    (path.parent / "other.json").write_text('{"tool": 1}')
    assert results.stored(tmp_path) == [path]
    wrong = documents.example() | {"suite": None}
    with pytest.raises(ValueError, match=r"\$\.suite: None is not of type 'string'"):
        results.write(wrong, tmp_path)
    path.write_text(json.dumps(wrong))
    with pytest.raises(ValueError, match="breaks bench/schema.json"):
        results.read(path)


def test_brief_table():
    lines = tables.brief(documents.example()).splitlines()
    assert lines[2] == "| LSTM | 10, 4, 8, 16 | 2.00 | 1.00 | **2.00×** | 8.00 | 5.00 | **1.60×** |"
    assert lines[3] == "| LSTM | 10, 4, 8, 32 | 2.00 | 4.00 | **0.50×** | 8.00 | refused |  |"


def test_summary_has_the_median_and_the_range_of_a_model():
    assert tables.summary(documents.example()).splitlines()[2:] == [
        "| LSTM | **1.25×** (0.50–2.00×) | **1.60×** (1.60–1.60×) |"
    ]


def test_full_table_and_reasons():
    document = documents.example()
    rows = tables.full(document).splitlines()
    cells = [cell.strip() for cell in rows[3].split("|")[1:-1]]
    flops = document["results"][1]["cost"]["flops"]
    assert cells[:8] == [
        "LSTM",
        "10, 4, 8, 16",
        "training",
        "8.00",
        "5.00",
        "4.50–5.50",
        "**1.60×**",
    ] + ["1.4"]
    assert cells[9:] == [
        "500.0",
        f"{flops / 5e-3 / 1e9:.0f}",
        "50.0",
        "10.0",
        "0.0 + 0.1",
        "0.1 + 0.0",
        "1.0 → 1.0",
    ]
    assert len({row.count("|") for row in rows}) == 1
    assert tables.others(document).endswith("[1] seqkernels: no such cell")


def test_misses_name_what_fell_short():
    document = documents.example()
    document["results"][1]["contestants"][1]["peak_memory_bytes"] = 5 * 2**20
    # The third could be 20 times as fast, this one only 1.2 times.
    document["results"].append(
        documents.result(documents.contestant(BASELINE, 1.2e-4), documents.contestant(OURS, 1.1e-4))
    )
    assert tables.misses([document]).splitlines() == [
        "- Test CPU (R) 9000, cpu: LSTM at (10, 4, 8, 16), training: peak memory 5.0 MB,"
        " torch.nn 1.0 MB",
        "- Test CPU (R) 9000, cpu: LSTM at (10, 4, 8, 32), inference: 0.50× against a target of"
        " 1.4",
        "- Test CPU (R) 9000, cpu: LSTM at (10, 4, 8, 32), training: not timed: no such cell",
        "- Test CPU (R) 9000, cpu: LSTM at (10, 4, 8, 16), training: 1.09× against a target of"
        " 1.4; out of reach here: the products alone allow 1.20×",
    ]
    assert tables.misses([]) == "None."


def test_contended_times_are_marked():
    document = documents.example()
    document["results"][0]["contestants"][1]["time_s"]["contended"] = True
    text = tables.brief(document)
    assert "**2.00×\\***" in text and "the machine was busy" in text


@pytest.mark.parametrize(
    ("suite", "cell", "batch", "rows", "mode", "wanted"),
    [
        ("cpu", "gru", 8, "padded", "training", 5.0),
        ("cpu", "gru", 16, "padded", "inference", 1.3),
        ("cpu", "lstm", 64, "padded", "training", 1.15),
        ("cpu", "lstm", 64, "padded", "inference", 1.0),
        ("cpu", "lstm", 16, "padded", "inference", 1.4),
        ("cpu", "rnn_tanh", 1, "padded", "training", 1.3),
        ("cpu", "gru", 64, "packed", "training", 1.8),
        ("cpu", "gru", 64, "packed", "inference", None),
        ("cells", "gru", 1, "padded", "inference", 1.0),
    ],
)
def test_targets(suite, cell, batch, rows, mode, wanted):
    case = documents.CASE.to_json() | {"cell": cell, "batch": batch, "rows": rows}
    assert target(suite, case, mode, "cpu") == wanted


def test_every_decode_case_has_a_target():
    wanted = [target("decode", c.to_json(), "inference", "cpu") for c in SUITES["decode"].cases]
    assert wanted == [1.8, 1.6, 8.0] * 2


def panels_of(document):
    """The axes of a document's plot, by their titles, drawn."""
    with figures.style():
        page = plot.figure(document)
        page.draw_without_rendering()
    return {axes.get_title(loc="left"): axes for axes in page.axes}


def test_plot_places_points_on_a_logarithmic_axis():
    panels = panels_of(documents.example())
    inference, training = (panels[f"LSTM, {mode}"] for mode in ("inference", "training"))
    assert inference.get_yscale() == "log" and inference.yaxis.get_transform().base == 2
    (points,) = [line for line in inference.lines if line.get_linestyle() == "None"]
    assert sorted(points.get_ydata()) == pytest.approx([0.5, 2.0])
    assert [t.get_text() for t in inference.get_yticklabels()][:3] == ["0.25×", "0.5×", "1×"]
    assert len([line for line in training.lines if line.get_linestyle() == "None"]) == 1


def test_the_same_json_gives_the_same_text_without_a_date():
    text = plot.svg(documents.example())
    assert text == plot.svg(documents.example())
    assert "dc:date" not in text and "Matplotlib v" not in text
    source, version = figures.recorded(text)
    assert source == plot.fingerprint(documents.example())
    assert version == importlib.metadata.version("matplotlib")


def texts_of(page):
    """(text, its box in pixels) of everything written on a drawn figure."""
    page.draw_without_rendering()
    found = [t for t in page.findobj(Text) if t.get_visible() and t.get_text().strip()]
    return [(t.get_text(), t.get_window_extent()) for t in found]


def assert_readable(page):
    """No text leaves the page or lies on another."""
    texts = texts_of(page)
    assert len(texts) > 5
    for i, (name, box) in enumerate(texts):
        assert box.x0 >= 0 and box.y0 >= 0, name
        assert box.x1 <= page.bbox.width and box.y1 <= page.bbox.height, name
        for other, other_box in texts[:i]:
            apart = box.x1 <= other_box.x0 or other_box.x1 <= box.x0
            apart |= box.y1 <= other_box.y0 or other_box.y1 <= box.y0
            assert apart, f"{name!r} lies on {other!r}"


@pytest.mark.parametrize("modes", [("inference",), ("inference", "training")])
def test_titles_and_legend_stay_inside_the_plot(modes):
    names = [OURS, "seqkernels.native", "seqkernels.onednn", "torch.compile", "torch.nn.graph"]
    rows = [documents.contestant(name, 1e-3) for name in (BASELINE, *names)]
    document = documents.document(*(documents.result(*rows, mode=mode) for mode in modes))
    with figures.style():
        page = plot.figure(document)
        assert_readable(page)
    assert {"torch.nn", "target", *names[1:]} <= {text for text, _ in texts_of(page)}


@pytest.mark.parametrize("path", results.stored(), ids=lambda p: f"{p.parent.name}/{p.stem}")
def test_published_plots_are_readable(path):
    with figures.style():
        assert_readable(plot.figure(results.read(path)))


def test_a_plot_of_another_matplotlib_is_judged_by_its_data(tmp_path):
    root = _repository(tmp_path)
    report.write(root)
    path = root / "bench/results/test-cpu-9000-2t/cpu.svg"
    drawn = path.read_text()
    version = figures.recorded(drawn)[1]
    other = drawn.replace(f"matplotlib {version}", "matplotlib 1.0").replace("<path", "<path ")
    path.write_text(other)
    assert report.stale(root) == [] and report.write(root) == []
    source = figures.recorded(drawn)[0]
    wrong = other.replace(source, "of data 0"), drawn.replace("<path", "<path "), ""
    for text in wrong:
        path.write_text(text)
        assert report.stale(root) == [f"{path.relative_to(root)} is not what its JSON says"]
    assert report.write(root) == [path] and path.read_text() == drawn


def _repository(root: Path) -> Path:
    results.write(documents.example(), root / "bench" / "results")
    (root / "docs").mkdir()
    (root / "README.md").write_text(
        "# Speed\n<!-- bench:cpu:begin -->\nold\n<!-- bench:cpu:end -->\nafter\n"
    )
    (root / "docs" / "benchmarks.md").write_text(
        "<!-- bench:cpu.full:begin -->\n<!-- bench:cpu.full:end -->\n"
        "<!-- bench:large:begin -->\n<!-- bench:large:end -->\n"
    )
    return root


def test_pages_are_rewritten_between_their_markers_only(tmp_path):
    root = _repository(tmp_path)
    assert report.stale(root) == [
        "bench/results/test-cpu-9000-2t/cpu.svg is not what its JSON says",
        "README.md is not what its JSON says",
        "docs/benchmarks.md is not what its JSON says",
    ]
    assert len(report.write(root)) == 3
    assert report.stale(root) == [] and report.write(root) == []
    page = (root / "README.md").read_text()
    assert page.startswith("# Speed\n<!-- bench:cpu:begin -->\n**Test CPU (R) 9000**, 2 threads")
    assert page.endswith("<!-- bench:cpu:end -->\nafter\n") and "old" not in page
    docs = (root / "docs" / "benchmarks.md").read_text()
    assert "(../bench/results/test-cpu-9000-2t/cpu.svg)" in docs and "Not measured yet." in docs


def test_drift_is_found(tmp_path):
    root = _repository(tmp_path)
    report.write(root)
    page = root / "README.md"
    page.write_text(page.read_text().replace("1.60×", "1.90×"))
    (root / "bench/results/test-cpu-9000-2t/old.svg").write_text("")
    assert report.stale(root) == [
        "README.md is not what its JSON says",
        "bench/results/test-cpu-9000-2t/old.svg has no JSON",
    ]
    page.write_text("<!-- bench:nothing:begin -->\n<!-- bench:nothing:end -->\n")
    with pytest.raises(ValueError, match="README.md: bench:nothing names no suite"):
        report.stale(root)


def _scaled(factor: float, name: str) -> dict:
    document = documents.example()
    for result in document["results"]:
        for row in result["contestants"]:
            if row["time_s"] and row["name"] == name:
                for key in ("median", "p20", "p80"):
                    row["time_s"][key] *= factor
    return document


def test_compare_fails_beyond_the_regression(tmp_path, capsys):
    old = results.write(documents.example(), tmp_path / "old")
    slower = results.write(_scaled(1.5, OURS), tmp_path / "slower")
    assert main(["compare", str(old), str(old)]) == 0
    assert main(["compare", str(old.parents[1]), str(slower.parents[1])]) == 1
    out = capsys.readouterr().out
    assert out.splitlines()[-1] == "7 compared, 3 slower by more than 10%"
    assert (
        " 1.500  slower  test-cpu-9000-2t cpu lstm-T10-N4-I8-H16-float32 inference seqkernels"
        in out
    )
    assert main(["compare", str(old), str(slower), "--regression", "0.6"]) == 0
    assert main(["compare", str(slower), str(old)]) == 0


def test_compare_leaves_noise_alone_and_can_be_relative(tmp_path):
    old = documents.example()
    (change,) = {
        (round(c.ratio, 3), c.certain)
        for c in compare.changes([old], [_scaled(1.15, OURS)])
        if c.name.endswith(OURS)
    }
    assert change == (1.15, False)
    # A machine at half speed: every time doubles, no ratio to torch.nn changes.
    both = _scaled(2.0, OURS)
    for mine, theirs in zip(both["results"], _scaled(2.0, BASELINE)["results"], strict=True):
        mine["contestants"][0] = theirs["contestants"][0]
    assert {c.ratio for c in compare.changes([old], [both])} == {2.0}
    assert {c.ratio for c in compare.changes([old], [both], relative=True)} == {1.0}


def test_compare_says_what_is_missing(tmp_path, capsys):
    assert main(["compare", str(tmp_path), str(tmp_path)]) == 2
    assert f"no results in {tmp_path}" in capsys.readouterr().err
    a = results.write(documents.document(suite="cpu"), tmp_path / "a")
    assert main(["compare", str(a), str(a)]) == 2
    assert "no measurement in common" in capsys.readouterr().err


def test_compare_fails_where_a_time_was_lost(tmp_path, capsys):
    old = results.write(documents.example(), tmp_path / "old")
    refused = documents.example()
    row = refused["results"][0]["contestants"][1]
    row |= {"time_s": None, "refused": "wrong output"}
    new = results.write(refused, tmp_path / "new")
    assert main(["compare", str(old), str(new)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[:3] == ["lost", "test-cpu-9000-2t", "cpu"]
    assert lines[1].endswith("lstm-T10-N4-I8-H16-float32 inference seqkernels: wrong output")
    assert lines[-1] == "6 compared, 0 slower by more than 10%, 1 lost"
    assert main(["compare", str(new), str(old)]) == 0
    (tmp_path / "torn.json").write_text("{")
    assert main(["compare", str(tmp_path / "torn.json"), str(old)]) == 2
    assert "torn.json is not JSON" in capsys.readouterr().err


def test_choices_name_what_dispatch_should_have_taken(tmp_path, capsys):
    def case(chosen, *times, **changed):
        rows = [documents.contestant(f"{OURS}.{name}", t) for name, t in times]
        ours = documents.contestant(OURS, dict(times).get(chosen, 1e-3), detail=chosen)
        return documents.result(ours, *rows, **changed)

    document = documents.document(
        case("native", ("native", 2e-3), ("onednn", 1e-3)),
        case("native", ("native", 1e-3), ("onednn", 2e-3)),
        # Within the spread, with one backend alone, and with two that shared the call.
        case("native", ("native", 1.05e-3), ("onednn", 1e-3)),
        case("native", ("native", 1e-3)),
        case("triton, stepwise", ("triton", 1e-3), ("stepwise", 2e-3), mode="inference"),
    )
    path = results.write(document, tmp_path)
    assert main(["choices", str(path)]) == 0
    assert capsys.readouterr().out.splitlines() == [
        "test-cpu-9000-2t: 3 choices among timed backends, 1 not the fastest",
        "   2.00  took native, not onednn: cpu LSTM (10, 4, 8, 16) training",
        "  1 × onednn before native",
        "  COMPILED_PAIR of seqkernels/triton/estimate.py: 200.0 µs",
    ]

"""Tables and plot of the pronunciation demo, from runs with round numbers."""

import json
import xml.etree.ElementTree as ElementTree

from bench import demo, report


def a_run(seed=0, wer=30.0, **changes):
    rates = {"wer": wer, "per": wer / 4}
    run = {
        "test": {"greedy": rates, "beam": {"wer": wer - 1, "per": wer / 4 - 0.25}},
        "tokens_per_second": 1300.0,
        "torch_tokens_per_second": 1000.0,
        "training_tokens_per_second": 1250.0,
        "minutes": 7.001,
        "processor_minutes": 12.5,
        "epochs": 10.0 + seed,
        "words": {"train": 1000, "dev": 10, "test": 2000},
        "seed": seed,
        "processor": "Test CPU",
        "processes": 1,
        "threads": 2,
        "torch": "2.13.0",
        "model": {"cell": "lstm", "hidden": 256, "attention": "general", "library": "seqkernels"},
        "recipe": {"minutes": 7.0, "seed": seed, "learning_rate": 0.004},
        "history": {"loss": [[1.0, 2.0]], "dev": [[60.0, 50.0, 15.0], [120.0, 40.0, 11.0]]},
    }
    return run | changes


def test_seeds_of_one_recipe_are_one_row_with_their_median():
    runs = [a_run(2, 31.0), a_run(0, 29.0), a_run(1, 30.5), a_run(0, 33.0, threads=1)]
    first, second = demo.groups(runs)
    assert [run["seed"] for run in first] == [0, 1, 2] and len(second) == 1
    (row,) = [line for line in demo.brief(runs).splitlines() if "2 threads" in line]
    assert row == (
        "| LSTM 256, general attention | 7 min, 2 threads | **30.50** (29.00, 30.50, 31.00) | "
        "29.50 |"
    )


def test_models_that_write_together_are_another_row():
    model = a_run()["model"] | {"models": 2, "cell": "gru"}
    one, together = demo.groups([a_run(), a_run(model=model)])
    assert demo.name_of(one[0]) == "LSTM 256, general attention"
    assert demo.name_of(together[0]) == "2 x GRU 256 (together), general attention"


def test_brief_table_puts_the_published_rates_in_order():
    lines = demo.brief([a_run(wer=30.5)]).splitlines()[2:]
    names = [line.split("|")[1].strip() for line in lines]
    assert names == [
        "LSTM 2 x 64 (published)",
        "Phonetisaurus WFST (published)",
        "LSTM 2 x 512 (published)",
        "LSTM 256, general attention",
        "Transformer 3 x 256 (published)",
    ]


def test_full_and_speed_tables():
    runs = [a_run(0), a_run(1, 32.0)]
    head, rule, row = demo.full(runs).splitlines()
    assert head.count("|") == rule.count("|") == row.count("|")
    cells = [cell.strip() for cell in row.split("|")[1:-1]]
    assert cells == [
        "LSTM 256, general attention",
        "7",
        "0, 1",
        "10.5",
        "1,250",
        "12.5",
        "**31.00** (30.00, 32.00)",
        "**7.75** (7.50, 8.00)",
        "**30.00** (29.00, 31.00)",
        "**7.50** (7.25, 7.75)",
    ]
    assert demo.speeds(runs).splitlines()[-1] == (
        "| LSTM 256, general attention | 2 | 1,000 | 1,300 | **1.30×** |"
    )
    assert demo.speeds([a_run(torch_tokens_per_second=None)]) == "Not measured yet."


def test_pages_and_plot_follow_the_files(tmp_path):
    page = tmp_path / "docs" / "g2p.md"
    page.parent.mkdir()
    page.write_text("a\n<!-- bench:g2p.full:begin -->\nold\n<!-- bench:g2p.full:end -->\nb\n")
    report.write(tmp_path)
    assert "Not measured yet." in page.read_text()
    folder = tmp_path / "bench" / "results" / "test-cpu-2t"
    folder.mkdir(parents=True)
    (folder / "g2p-lstm-seed0.json").write_text(json.dumps(a_run()))
    assert report.stale(tmp_path) != []
    report.write(tmp_path)
    assert report.stale(tmp_path) == []
    text = page.read_text()
    assert "old" not in text and text.startswith("a\n") and text.endswith("-->\nb\n")
    assert "**Test CPU**, 2 threads" in text
    assert "(../bench/results/test-cpu-2t/g2p.svg)" in text
    ElementTree.parse(folder / "g2p.svg")
    (folder / "g2p-lstm-seed0.json").unlink()
    assert any("g2p.svg has no JSON" in line for line in report.stale(tmp_path))

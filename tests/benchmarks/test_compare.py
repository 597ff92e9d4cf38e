"""benchmarks/compare.py writes result, plots and page from end to end, and the page holds what the results say."""

import json
import re
from dataclasses import replace

import compare
import numpy as np
import pytest

import minitune as mt
from minitune.data import Dataset, Split
from minitune.experiments import Comparison, Pretraining, Protocol, pretrain
from minitune.experiments.comparison import PLOTS

RATES = {"full": (1e-3, 1e-2), "lora": (1e-2, 1e-1), "head": (1e-2,)}
TINY = Protocol(sizes=(4, 8), seeds=(0,), sweep_at=(4,), rates=RATES, least_steps=2, epochs=0, block_size=12)
WORDS = [["wave", "tide", "shell"], ["tree", "leaf", "moss"]]
COMMITTED = compare.ROOT                        # the tests below write elsewhere
MARKS = {name: f"<!-- {name}: .*?<!-- end of {name} -->" for name in compare.SETTINGS}


@pytest.fixture(scope="module")
def imdb():
    random = np.random.default_rng(0)
    splits = {}
    for name, count in {"train": 20, "valid": 10, "test": 30}.items():
        labels = np.arange(count) % 2
        splits[name] = Split([" ".join(random.choice(WORDS[label], 6)) for label in labels], labels)
    return Dataset("imdb", ("sea", "wood"), splits, citation="made up")


@pytest.fixture
def command(imdb, tmp_path, monkeypatch):
    """Calls the script in an empty copy of the repository's places, on a few made-up texts."""
    pytest.importorskip("matplotlib", reason="the plots need matplotlib")
    settings = Pretraining(vocab_size=300, block_size=16, n_layer=1, n_head=2, n_embd=16, steps=2, batch_size=2, held_out=2)
    pretrain(imdb, tmp_path / "base", settings, progress=False)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "lora_or_full.md").write_bytes((COMMITTED / "docs" / "lora_or_full.md").read_bytes())
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    monkeypatch.setattr(compare, "ROOT", tmp_path)
    monkeypatch.setattr(mt.data, "load", {"imdb": imdb}.__getitem__)
    monkeypatch.setitem(compare.SETTINGS, "imdb", (("full", "lora"), TINY))
    module = compare.compare.__globals__        # the call's own module, whose general text would take seconds
    monkeypatch.setitem(module, "load", lambda name: replace(imdb, name=name, version="CPython 3"))

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["compare.py", "imdb", *arguments, "--base", str(tmp_path / "base")])
        compare.main()
        return tmp_path

    return run


def test_a_comparison_is_written_as_result_plots_and_page(command, capsys):
    root = command()
    found = Comparison.from_json(root / "benchmarks/results/compare_imdb.json")
    assert found.table() in capsys.readouterr().out and found.methods == ["full", "lora"]
    settings = found.results.settings
    assert {"processor", "versions", "command", "fingerprint", "minitune", "workers"} <= set(settings)
    assert settings["seconds_of_all_runs"] >= round(sum(row["seconds"] for row in found.results.rows))
    assert settings["command"].startswith("python benchmarks/compare.py imdb")
    for file in PLOTS:
        assert (root / "docs/images/compare_imdb" / file).read_bytes().startswith(b"\x89PNG")
    page = (root / "docs/lora_or_full.md").read_text(encoding="utf-8")
    said = [found.table(), found.rates(), found.beside_papers(), *(found.sentence(labels=n) for n in found.sizes), *PLOTS]
    assert all(part in page for part in said) and "pydocs CPython 3" in page
    committed = (COMMITTED / "docs/lora_or_full.md").read_text(encoding="utf-8")
    assert re.sub(MARKS["imdb"], "", page, flags=re.DOTALL) == re.sub(MARKS["imdb"], "", committed, flags=re.DOTALL)


def test_methods_are_named_and_the_page_is_written_anew_from_the_results_alone(command, monkeypatch):
    root = command("--methods", "full,head")
    page = (root / "docs/lora_or_full.md").read_text(encoding="utf-8")
    (root / "docs/lora_or_full.md").write_bytes((COMMITTED / "docs/lora_or_full.md").read_bytes())
    monkeypatch.setattr(compare, "compare", None)
    command("--pages")
    assert (root / "docs/lora_or_full.md").read_text(encoding="utf-8") == page
    assert Comparison.from_json(root / "benchmarks/results/compare_imdb.json").methods == ["full", "head"]


def test_the_settings_are_those_that_were_asked_for():
    assert {name: protocol.sizes for name, (_, protocol) in compare.SETTINGS.items()} == {
        "ag_news_22k": (100, 1_000, 10_000), "imdb": (100, 1_000)}
    for methods, protocol in compare.SETTINGS.values():
        assert protocol.seeds == (0, 1, 2) and {"full", "lora"} <= set(methods)


def test_the_committed_page_says_what_the_committed_results_say():
    page = (COMMITTED / "docs/lora_or_full.md").read_text(encoding="utf-8")
    for name in compare.SETTINGS:
        lines = compare.section(measured(name), name)
        assert "\n".join([f"<!-- {name}: written by benchmarks/compare.py -->", *lines, f"<!-- end of {name} -->"]) in page


def measured(name):
    return Comparison.from_json(COMMITTED / "benchmarks/results" / f"compare_{name}.json")


@pytest.mark.parametrize("name", compare.SETTINGS)
def test_what_was_measured_is_lora_beside_full_with_three_seeds_and_a_sweep(name):
    found, (_, protocol) = measured(name), compare.SETTINGS[name]
    assert {"full", "lora"} <= set(found.methods) and tuple(found.sizes) == protocol.sizes
    for n in found.sizes:
        assert all({run["seed"] for run in found.results.runs(method, n)} == set(protocol.seeds) for method in found.methods)
        assert found.share("lora", n) < 0.1                     # over 90 % fewer parameters than full fine-tuning trains
    assert all(len(found.swept()[n][method]) == 5 for n in protocol.sweep_at or protocol.sizes for method in ("full", "lora"))


def test_a_merged_lora_was_measured_to_be_as_fast_as_its_base():
    rows = json.loads((COMMITTED / "benchmarks/results/merged.json").read_text(encoding="utf-8"))["rows"]
    assert all(abs(row["ratio_to_base"] - 1) < 0.03 for row in rows if row["name"] == "merged")      # medians of pairs


def test_an_unknown_data_set_is_refused_with_those_there_are(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["compare.py", "sst2"])
    with pytest.raises(SystemExit):
        compare.main()
    assert "ag_news_22k" in capsys.readouterr().err

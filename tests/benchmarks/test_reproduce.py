"""benchmarks/reproduce.py writes result, picture and page from end to end, and the page holds what the results say."""

import json
import re

import numpy as np
import pytest
import reproduce

import minitune as mt
from minitune.data import Dataset, Split
from minitune.experiments import LanguageModelStage, Pretraining, Protocol, pretrain
from minitune.experiments.published import DATA, PUBLISHED
from minitune.experiments.reproduction import Reproduction
from minitune.experiments.ulmfit_tables import SCALES, Scale

STAGE = LanguageModelStage(least_steps=2)
TINY = Scale(Protocol(seeds=(0, 1), least_steps=4, epochs=1, batch_size=4, evaluations=2), STAGE, STAGE, labels=8,
             recurrent={"n_embd": 8, "n_hidden": 8, "n_layer": 1, "block_size": 16})
WORDS = [["wave", "tide", "shell"], ["tree", "leaf", "moss"]]
COMMITTED = reproduce.ROOT                      # the tests below write elsewhere
MEASURED = {f"ulmfit_{name}" for name in ("figure3_imdb", "figure3_trec", "table4_trec", "table6_trec", "table7_trec")}


@pytest.fixture(scope="module")
def trec():
    random = np.random.default_rng(0)
    splits = {}
    for name, count in {"train": 40, "valid": 20, "test": 30}.items():
        labels = np.arange(count) % 2
        splits[name] = Split([" ".join(random.choice(WORDS[label], 6)) for label in labels], labels)
    return Dataset("trec", ("sea", "wood"), splits, citation="made up", notes=("Some texts left train.",))


@pytest.fixture
def command(trec, tmp_path, monkeypatch):
    """Calls the script in an empty copy of the repository's places, on a few made-up texts."""
    settings = Pretraining(vocab_size=300, block_size=16, n_layer=1, n_head=2, n_embd=16, steps=2, batch_size=2, held_out=2)
    pretrain(trec, tmp_path / "base", settings, progress=False)
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "ulmfit.md").write_bytes((COMMITTED / "docs" / "ulmfit.md").read_bytes())
    (tmp_path / "benchmarks" / "results").mkdir(parents=True)
    monkeypatch.setattr(reproduce, "ROOT", tmp_path)
    monkeypatch.setattr(mt.data, "load", {"trec": trec}.__getitem__)
    monkeypatch.setitem(SCALES, "tiny", TINY)

    def run(*arguments):
        monkeypatch.setattr("sys.argv", ["reproduce.py", *arguments, "--base", str(tmp_path / "base"), "--scale", "tiny",
                                         "--workers", "1"])
        reproduce.main()
        return tmp_path

    return run


def without(page, name):
    return re.sub(f"<!-- {name}: .*?<!-- end of {name} -->", "", page, flags=re.DOTALL)


def test_a_table_is_written_as_result_picture_and_page(command, capsys):
    root = command("ulmfit.table6", "trec")
    stem = "ulmfit_table6_trec"
    found = Reproduction.from_json(root / "benchmarks" / "results" / f"{stem}.json")
    assert found.table() in capsys.readouterr().out
    settings = found.results.settings
    assert {"processor", "versions", "command", "fingerprint", "minitune"} <= set(settings)
    assert settings["seconds_of_all_runs"] >= round(sum(row["seconds"] for row in found.results.rows))
    assert settings["command"].startswith("python benchmarks/reproduce.py ulmfit.table6 trec")
    assert (root / "docs" / "images" / f"{stem}.png").read_bytes().startswith(b"\x89PNG")
    page = (root / "docs" / "ulmfit.md").read_text(encoding="utf-8")
    assert found.table() in page and found.sentence() in page and all(note in page for note in found.notes)
    assert "\n- Some texts left train.\n" in page and "\n- Test texts in what may be read of trec without labels: " in page
    edges, ended = settings["rates_at_the_edge"], settings["scratch_not_stalled"]
    assert f"Best rates at the edge of those tried: {', '.join(edges) or 'none'}. From scratch, ended before validation had " \
           f"stalled: {', '.join(ended) or 'none'}. " in page
    committed = (COMMITTED / "docs" / "ulmfit.md").read_text(encoding="utf-8")
    assert without(page, "ulmfit.table6 trec") == without(committed, "ulmfit.table6 trec")     # all else is as it was


def test_the_page_is_written_anew_from_the_results_alone(command, monkeypatch):
    root = command("ulmfit.table4", "trec")
    page = (root / "docs" / "ulmfit.md").read_text(encoding="utf-8")
    (root / "docs" / "ulmfit.md").write_bytes((COMMITTED / "docs" / "ulmfit.md").read_bytes())
    monkeypatch.setattr(reproduce, "reproduce", None)
    command("ulmfit.table4", "trec", "--pages")
    assert (root / "docs" / "ulmfit.md").read_text(encoding="utf-8") == page


def test_device_and_dtype_are_passed_on_and_recorded(command, monkeypatch):
    given = []

    def noted(*arguments, **settings):
        given.append((settings["device"], settings["dtype"]))
        return made(*arguments, **settings | {"device": "cpu", "dtype": None})

    made = reproduce.reproduce
    monkeypatch.setattr(reproduce, "reproduce", noted)
    monkeypatch.setattr(reproduce, "gpu", lambda: {"card": "a card"})
    root = command("ulmfit.table4", "trec", "--device", "cuda", "--dtype", "bfloat16", "--note", "Made twice.")
    stored = json.loads((root / "benchmarks" / "results" / "ulmfit_table4_trec.json").read_text(encoding="utf-8"))
    assert given == [("cuda", "bfloat16")] == [(stored["settings"]["device"], stored["settings"]["dtype"])]
    page = (root / "docs" / "ulmfit.md").read_text(encoding="utf-8")
    assert "added up, in bfloat16 on one a card." in page and "\n- Made twice.\n" in page


def test_table_5_reads_the_texts_that_are_named(command):
    root = command("ulmfit.table5", "trec", "--texts", "trec")
    stored = json.loads((root / "benchmarks" / "results" / "ulmfit_table5_trec.json").read_text(encoding="utf-8"))
    assert {base["texts"] for base in stored["settings"]["bases"].values()} == {"trec"}


def test_the_committed_results_are_those_that_are_named_here():
    """A table that is measured gets its name into MEASURED; from then on its results cannot go missing unseen."""
    assert {file.stem for file in (COMMITTED / "benchmarks" / "results").glob("ulmfit_*.json")} == MEASURED


def test_the_committed_page_says_what_the_committed_results_say():
    page = (COMMITTED / "docs" / "ulmfit.md").read_text(encoding="utf-8")
    for name in PUBLISHED:
        for data in DATA:
            stem = f"{name.replace('.', '_')}_{data}"
            file = COMMITTED / "benchmarks" / "results" / f"{stem}.json"
            lines = reproduce.section(Reproduction.from_json(file), stem) if file.exists() else []
            mark = f"<!-- {name} {data}: written by benchmarks/reproduce.py -->"
            assert "\n".join([mark, *lines, f"<!-- end of {name} {data} -->"]) in page


@pytest.mark.parametrize("arguments", [("ulmfit.table9", "trec"), ("ulmfit.table4", "sst2")])
def test_an_unknown_table_or_data_set_is_refused_with_those_there_are(arguments, command, capsys):
    with pytest.raises(SystemExit):
        command(*arguments)
    assert "ulmfit.table4" in capsys.readouterr().err


def test_sets_are_cut_to_what_is_measured_on(trec, monkeypatch):
    monkeypatch.setattr(reproduce, "MEASURED_ON", {"test": 12, "valid": 500})
    few = reproduce.cut(trec)
    assert few.test.texts == trec.test.texts[:12] and len(few.valid) == 20 and few.train is trec.train

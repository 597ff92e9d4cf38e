"""few_rows: the page says what the runs say, with intervals over draws and test rows."""

import json
from hashlib import sha256
from types import SimpleNamespace

import few_rows
import numpy as np
import pytest

import minitune as mt
from minitune.formats.folder import WEIGHTS, find_model


def run_line(draw, errors, rows=200):
    random = np.random.default_rng(draw)
    wrong = {name: np.packbits(random.permutation(rows) < share * rows).tobytes().hex() for name, share in errors.items()}
    return {"data": "trec", "draw": draw, "wrong": wrong, "tested": rows, "seconds": 2.0, "classes": 6}


def test_the_page_gives_accuracies_and_differences_with_intervals():
    runs = [run_line(draw, {"tuned": 0.2, "scratch": 0.6, "tf-idf": 0.2}) for draw in range(3)]
    whole = {"cores": 2, "rows": 100, "base": {"name": "minitune-base", "parameters": 1000}, "runs": runs, "command": "c"}
    (line,) = [line for line in few_rows.page(whole) if line.startswith("| trec")]
    cells = [cell.strip() for cell in line.split("|")][1:-1]
    assert cells[:5] == ["trec", "6", "80.0 %", "40.0 %", "80.0 %"]
    assert cells[5].startswith("+40.0 (+3") and cells[6].startswith("+0.0 (-")


def test_wrong_rows_come_back_from_their_digits():
    run = run_line(0, {"tuned": 0.25})
    assert few_rows.wrong_of([run, run], "tuned").shape == (2, 200) and few_rows.wrong_of([run], "tuned").mean() == 0.25


def test_the_baseline_learns_all_rows_and_takes_the_weaker_regularisation_between_equals():
    texts = [f"{word} wave{i}" for i, word in enumerate(("sea", "tree") * 10)]
    model = few_rows.baseline(texts, ["water", "wood"] * 10, seed=0)
    features, classifier = model
    assert set(" ".join(texts).split()) <= set(features.vocabulary_)       # of every row, none held back
    assert classifier.C == max(few_rows.STRENGTHS)                          # each strength makes no error here
    assert list(model.predict(["sea", "tree"])) == ["water", "wood"]


def test_the_baseline_is_as_strong_as_cross_validation_says(monkeypatch):
    """The parts that are held out decide, not the rows that were fitted: these the weakest always fits best."""
    texts = [f"{'sea' if i % 5 else 'tree'} {'sea' if i % 2 else 'tree'} row{i}" for i in range(40)]
    labels = ["water" if i % 5 else "wood" for i in range(40)]
    monkeypatch.setattr(few_rows, "STRENGTHS", (1e-6, 1.0))
    assert few_rows.baseline(texts, labels, seed=0)[1].C == 1.0             # 1e-6 answers the larger class alone
    monkeypatch.setattr(few_rows, "STRENGTHS", (1e-6, 1e6))
    mixed = [labels[i] for i in np.random.default_rng(0).permutation(40)]   # nothing to learn: who learns it does worse
    assert few_rows.baseline(texts, mixed, seed=0)[1].C == 1e-6


def test_every_class_is_spread_evenly_over_the_parts():
    labels = ["a"] * 31 + ["b"] * 12 + ["c"] * 2
    part = few_rows.balanced_parts(labels, seed=0)
    for name in "abc":
        counts = np.bincount(part[np.array(labels) == name], minlength=few_rows.PARTS)
        assert counts.max() - counts.min() <= 1
    assert (part != few_rows.balanced_parts(labels, seed=1)).any()


def test_runs_of_other_texts_or_sizes_are_not_taken_for_these(tmp_path, monkeypatch):
    """A run's key has what it was made of: the data's fingerprint, how many rows were learned and how many measured."""
    given = []

    def stop(specs, *_, **__):
        given.extend(specs)
        raise InterruptedError

    monkeypatch.setattr(few_rows, "run", stop)
    monkeypatch.setattr(few_rows, "SETS", ("pydocs",))
    monkeypatch.setattr(mt.data, "load", lambda name: SimpleNamespace(fingerprint=f"that of {name}"))
    monkeypatch.setattr("sys.argv", ["few_rows.py", "--draws", "2", "--out", str(tmp_path)])
    with pytest.raises(InterruptedError):
        few_rows.main()
    assert [spec["draw"] for spec in given] == [0, 1]
    assert {(spec["fingerprint"], spec["rows"], spec["test_rows"]) for spec in given} == {
        ("that of pydocs", few_rows.ROWS, few_rows.TEST_ROWS)}


def test_scratch_has_the_bases_sizes_and_none_of_its_weights():
    base, new = mt.models.from_pretrained(few_rows.DEFAULT_BASE), few_rows.new_weights(0)
    assert new.config == base.config and new.tokenizer.vocab_size == base.tokenizer.vocab_size
    assert not np.allclose(new.token_embedding.weight.data, base.token_embedding.weight.data)


def test_the_committed_figures_are_of_the_model_that_ships():
    committed = json.loads((few_rows.ROOT / "benchmarks" / "results" / "few_rows.json").read_text(encoding="utf-8"))
    weights = (find_model(few_rows.DEFAULT_BASE) / WEIGHTS).read_bytes()
    assert committed["base"]["digest"] == sha256(weights).hexdigest()[:8]

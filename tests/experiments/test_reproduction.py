"""A paper's tables: the rows and figures are the paper's, and claims on runs with known errors are judged as they should be."""

import json
import shutil
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest

from minitune.data import LanguageModelSet, overlap
from minitune.experiments import LanguageModelStage, Protocol, Results
from minitune.experiments.published import PUBLISHED, figures
from minitune.experiments.recipe import Recipe, texts_of
from minitune.experiments.reproduction import Claim, CurveReproduction, Reproduction, _recurrent_base, reproduce
from minitune.experiments.runner import read_lines
from minitune.experiments.sample_efficiency import make_task, run_one
from minitune.experiments.ulmfit_tables import ROWS, SCALES, Scale, TwoRates
from minitune.models import Classifier, from_pretrained
from minitune.train import evaluate
from minitune.tune.patterns import backbone_of

MODULE = sys.modules["minitune.experiments.sample_efficiency"]      # the package's attribute of this name is the function
STAGE = LanguageModelStage(least_steps=2, batch_size=8)
TINY = Scale(Protocol(seeds=(0, 1), least_steps=4, epochs=1, batch_size=4, longest=2, evaluations=2), STAGE,
             replace(STAGE, rate_factor=1.0, block_size=16), labels=8, curve=(4, 8), curve_scratch=(16, 1000),
             recurrent={"n_embd": 8, "n_hidden": 8, "n_layer": 1, "block_size": 16})
TEXTS = 400


@pytest.fixture(scope="module")
def trec(toy):
    """The toy under the name of a data set that the paper reports."""
    return replace(toy, name="trec")


@pytest.fixture(scope="module")
def finished(trec, backbone, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return reproduce("ulmfit.table7", trec, backbone, out, TINY, progress=False), out


def made_up(errors, name="trec", labels=(500,), **settings):
    """Results of {row: error, or errors by label count}: a row that errs more errs on the same texts and on more."""
    order, rows = np.random.default_rng(0).permutation(TEXTS), []
    for method, curve in errors.items():
        for n, error in zip(labels, curve if isinstance(curve, tuple) else (curve,)):
            wrong = order < round(error * TEXTS)
            rows += [{"method": method, "labels": n, "seed": seed, "error": float(wrong.mean()), "valid_error": error,
                      "test_texts": TEXTS, "wrong": np.packbits(wrong).tobytes().hex()} for seed in range(3)]
    return Results(rows, {"dataset": name, **settings})


# ---- What the paper says -------------------------------------------------------------------------------------------

@pytest.mark.parametrize("table, data, row, value", [
    ("table4", "imdb", "without pretraining", 5.63), ("table4", "trec", "with pretraining", 5.69),
    ("table5", "ag_news_22k", "vanilla LM", 5.76), ("table6", "trec", "no LM fine-tuning", 6.38),
    ("table6", "imdb", "full + discr", 5.55), ("table7", "imdb", "from scratch", 9.93), ("table7", "trec", "last", 16.09),
    ("table7", "ag_news_22k", "freez + cos", 5.29), ("table7", "ag_news_22k", "freez + discr", 6.04),
    ("table7", "trec", "chain-thaw", 6.71), ("figure3", "imdb", "supervised", 10), ("figure3", "imdb", "semi-supervised", 100),
    ("figure3", "ag_news_22k", "supervised", 20), ("figure3", "ag_news_22k", "semi-supervised", 50)])
def test_a_figure_is_the_one_that_the_paper_prints(table, data, row, value):
    found, = (figure for figure in figures(f"ulmfit.{table}", data) if figure.row == row)
    assert found.value == value and found.unit == ("times" if table == "figure3" else "%")
    assert "1801.06146" in found.paper and f"{table[:-1].capitalize()} {table[-1]}" in found.place
    assert ("one model, reading forwards" in found.measured) is (table != "figure3")


@pytest.mark.parametrize("table, names", [
    ("table4", "without pretraining, with pretraining"), ("table5", "vanilla LM, AWD-LSTM LM"),
    ("table6", "no LM fine-tuning, full, full + discr, full + discr + stlr"),
    ("table7", "from scratch, full, full + discr, last, chain-thaw, freez, freez + discr, freez + stlr, freez + cos, "
               "freez + discr + stlr")])
def test_the_rows_of_a_table_and_their_order_are_the_papers(table, names):
    assert [row.name for row in ROWS[f"ulmfit.{table}"](SCALES["small"])] == names.split(", ")
    for data in ("imdb", "trec", "ag_news_22k"):
        assert [figure.row for figure in figures(f"ulmfit.{table}", data)] == names.split(", ")


def test_every_table_ends_with_the_whole_recipe():
    stage = SCALES["small"].language_model
    for table in ("table4", "table5", "table6", "table7"):
        assert ROWS[f"ulmfit.{table}"](SCALES["small"])[-1].recipe == Recipe(language_model=stage)
        assert [figure.value for figure in PUBLISHED[f"ulmfit.{table}"]][-3:] == [5.00, 5.69, 5.38]


def test_rows_differ_in_what_their_names_say():
    rows = {row.name: row for row in ROWS["ulmfit.table7"](SCALES["small"])}
    for name in ("full", "full + discr", "freez", "freez + discr", "freez + stlr", "freez + cos", "freez + discr + stlr"):
        recipe = rows[name].recipe
        assert recipe.rate_factor == (2.6 if "discr" in name else 1.0)
        assert recipe.schedule == ("slanted_triangular" if "stlr" in name else "cosine" if "cos" in name else "constant")
        assert recipe.unfreezing == ("gradual" if "freez" in name else "all")
        assert max(rows[name].rates) == (0.01 if "discr" in name else 0.001)        # the paper's
    stages = {row.name: row.recipe.language_model for row in ROWS["ulmfit.table6"](SCALES["small"])}
    assert stages["no LM fine-tuning"] is None and len(set(stages.values())) == 4
    assert stages["full"].rate_factor == 1 and stages["full + discr"].rate_factor > 1
    assert stages["full"].schedule == stages["full + discr"].schedule == "constant"


def test_chain_thaw_gives_all_below_the_head_a_tenth_of_its_rate(backbone, trec):
    model = Classifier(backbone_of(from_pretrained(backbone)), trec.labels)
    rows = make_task(trec, backbone, {}, TINY.protocol).train
    trainer = TwoRates(unfreezing="chain-thaw").trainer(model, rows, None, rate=1e-3, steps=8, progress=False)
    head = {id(p) for p in model.head.parameters()}
    rates = {id(p): group.rate for group in trainer.optimizer.groups for p in group.parameters}
    assert {rates[p] for p in head} == {1.0} and {rate for p, rate in rates.items() if p not in head} == {0.1}


# ---- Claims --------------------------------------------------------------------------------------------------------

def test_a_claim_holds_is_reversed_or_cannot_be_told_apart():
    results = made_up({"no LM fine-tuning": 0.40, "full": 0.20, "full + discr": 0.30, "full + discr + stlr": 0.30})
    claims = {claim.higher: claim for claim in Reproduction("ulmfit.table6", results).claims()}
    assert {name: claim.verdict for name, claim in claims.items()} == {
        "no LM fine-tuning": "holds", "full": "reversed", "full + discr": "not distinguishable"}
    assert all(claim.lower == "full + discr + stlr" for claim in claims.values())
    holds = claims["no LM fine-tuning"]
    assert holds.published == pytest.approx(5.69 - 6.38) and holds.here[0] == pytest.approx(-10)
    assert holds.here[1] < -10 < holds.here[2] < 0
    assert str(holds).startswith("full + discr + stlr < no LM fine-tuning at 500 labels: holds (paper -0.69 points, here -10.0")
    assert Reproduction("ulmfit.table6", results).sentence() == (
        "1 of 3 orderings hold, 1 are reversed, the rest cannot be told apart.")


@pytest.mark.parametrize("here, verdict", [
    ((-2.0, -4.0, -0.1), "holds"), ((2.0, 0.1, 4.0), "reversed"), ((-2.0, -4.0, 0.1), "not distinguishable"),
    ((2.0, -0.1, 4.0), "not distinguishable"), ((-2.0, -4.0, 0.0), "not distinguishable")])
def test_the_whole_interval_has_to_lie_on_one_side(here, verdict):
    assert Claim("whole", "full", 500, -1.0, here).verdict == verdict


def test_an_ordering_is_the_papers_where_the_whole_recipe_is_not_the_best_there():
    """On AG the paper's cosine and its rows without discriminative rates do better than the whole recipe."""
    rows = {row.name: 0.3 for row in ROWS["ulmfit.table7"](SCALES["small"])}
    claims = Reproduction("ulmfit.table7", made_up(rows | {"freez + cos": 0.2, "freez + stlr": 0.4}, "ag_news_22k")).claims()
    assert len(claims) == 9
    better = {claim.lower: claim.verdict for claim in claims if claim.higher == "freez + discr + stlr"}
    assert better == {"freez + cos": "holds", "freez + stlr": "reversed"}


def test_figure_3_says_how_many_times_the_labels_and_beside_it_the_papers_factor():
    """At 100 labels tuned errs as scratch does with 1,000, ten times as many; with all texts less than scratch ever does."""
    errors = {"scratch": (0.6, 0.4, 0.3), "supervised": (0.4, 0.3, None), "semi-supervised": (0.2, 0.1, None)}
    results = made_up({name: tuple(e for e in curve if e) for name, curve in errors.items()}, "imdb", (100, 1000, 5000))
    found = CurveReproduction("ulmfit.figure3", results)
    assert found.labels == 100 and found.factor("supervised", 100)[0] == pytest.approx(10)
    rows = {tuple(line.split()[:2]): line.split() for line in found.table().splitlines()}
    assert rows["100", "supervised"][5:7] == ["10", "10"]
    assert rows["100", "semi-supervised"][5:9] == ["100", "more", "than", "50"]
    assert rows["1,000", "semi-supervised"][5:8] == ["more", "than", "5"] and ("5,000", "scratch") in rows
    assert [(claim.lower, claim.higher, claim.verdict) for claim in found.claims()] == [
        ("supervised", "scratch", "holds"), ("semi-supervised", "scratch", "holds"), ("semi-supervised", "supervised", "holds")]


def test_the_table_has_the_papers_figures_beside_ours():
    results = made_up({"without pretraining": 0.40, "with pretraining": 0.30}, "ag_news_22k")
    title, head, columns, without, whole = Reproduction("ulmfit.table4", results).table().splitlines()
    assert title == "ULMFiT, Table 4, AG" and "at 500 labels" in head and columns.startswith("row ")
    assert without.startswith("without pretraining  5.52   40.0 [") and "  +0.14  " in without and without.endswith("  holds")
    assert whole.startswith("with pretraining     5.38   30.0 [")


@pytest.mark.parametrize("name, errors, labels", [
    ("ulmfit.table4", {"without pretraining": 0.40, "with pretraining": 0.30}, (500,)),
    ("ulmfit.figure3", {"scratch": (0.6, 0.4), "supervised": (0.4, 0.3), "semi-supervised": (0.2, 0.1)}, (100, 1000))])
def test_what_is_written_is_read_back_and_drawn(name, errors, labels, tmp_path):
    found = {"ulmfit.figure3": CurveReproduction}.get(name, Reproduction)(name, made_up(errors, "imdb", labels), ["A note."])
    found.to_json(tmp_path / "table.json")
    again = Reproduction.from_json(tmp_path / "table.json")
    assert type(again) is type(found) and again.notes == found.notes
    assert again.table() == found.table() and again.claims() == found.claims()
    stored = json.loads((tmp_path / "table.json").read_text(encoding="utf-8"))
    assert stored["sentence"] == found.sentence() and stored["claims"][0]["verdict"] == "holds"
    found.plot(tmp_path / "table.png")
    assert (tmp_path / "table.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "other.json").write_text('{"runs": []}', encoding="utf-8")
    with pytest.raises(ValueError, match="has no name, notes, settings. Was it written by to_json"):
        Reproduction.from_json(tmp_path / "other.json")


# ---- Runs ----------------------------------------------------------------------------------------------------------

def test_every_row_is_run_with_every_seed_from_one_language_model(finished):
    found, out = finished
    assert found.results.methods == [figure.row for figure in found.figures] and len(found.results.rows) == 10 * 2
    assert len(read_lines(out / "language_models.jsonl")) == 1          # nine rows begin with it, scratch with none
    assert set(found.results.settings["language_models"]) == set(found.results.methods) - {"from scratch"}
    assert len(found.claims()) == 9 and found.results.settings["bases"]["every row"]["model"] == "GPT"
    notes = "\n".join(found.notes)
    assert "The paper has 5,500 training texts with labels; here there are 40, of which 8 are used." in notes
    assert "Seeds: 2 at 8 labels. " in notes and "with 1 seed an interval is of the test texts alone" in notes
    assert "divided by 1.3; the paper divides by 2.6" in notes
    assert "\nchain-thaw: " in notes and "chain-thaw 0.00" in notes        # what to know of the row, and its rate


def test_a_second_call_runs_nothing_and_another_table_only_what_is_new(finished, trec, backbone, monkeypatch):
    found, out = finished
    ran = []
    monkeypatch.setattr(MODULE, "run_one", lambda task, spec: ran.append(spec["method"]) or run_one(task, spec))
    again = reproduce("ulmfit.table7", trec, backbone, out, TINY, progress=False)
    assert not ran and again.results.rows == found.results.rows and again.notes == found.notes
    reproduce("ulmfit.table4", trec, backbone, out, TINY, progress=False)
    assert set(ran) == {"without pretraining", "with pretraining"}
    assert len(read_lines(out / "language_models.jsonl")) == 2          # the new weights'; the other is known from table 7


def test_table_5_makes_two_bases_once_that_differ_in_their_regularisers_alone(trec, backbone, tmp_path, monkeypatch):
    given = {"scale": TINY, "progress": False, "texts": trec}
    found = reproduce("ulmfit.table5", trec, backbone, tmp_path, **given)
    assert found.results.methods == ["vanilla LM", "AWD-LSTM LM"] and len(found.results.rows) == 4
    vanilla, awd = (found.results.settings["bases"][row]["config"] for row in found.results.methods)
    differ = {name for name in vanilla if vanilla[name] != awd[name]}
    assert differ == {name for name in awd if "dropout" in name or "regularization" in name}
    assert {vanilla[name] for name in differ} == {0} and awd["weight_dropout"] == 0.5
    assert len({row["backbone"] for row in found.results.rows}) == 2
    assert {row["method"] for row in found.results.settings["sweep"]} == set(found.results.methods)
    assert found.results.settings["overlap"] == {"trec": str(overlap(texts_of(trec), trec.test.texts))}
    monkeypatch.setattr("minitune.experiments.reproduction.tune_language_model", None)
    assert reproduce("ulmfit.table5", trec, backbone, tmp_path, **given).results.rows == found.results.rows


def test_the_perplexity_of_a_base_is_that_of_the_weights_that_are_saved(trec, backbone, tmp_path):
    """At a rate far too high what comes last is worse than the best, which is kept."""
    scale = replace(TINY, pretraining=replace(TINY.pretraining, rate=10.0, least_steps=12))
    folder = _recurrent_base(tmp_path, backbone, trec, scale, 0.0, False)
    model = from_pretrained(folder)
    rows = LanguageModelSet.from_texts(trec.valid.texts, model.tokenizer, scale.pretraining.block_size)
    recorded = json.loads((folder / "pretraining.json").read_text(encoding="utf-8"))["perplexity"]
    assert recorded == pytest.approx(evaluate(model, rows)["perplexity"], rel=1e-4)     # batches of other sizes round otherwise


def test_device_and_dtype_reach_the_bases_and_every_run(trec, backbone, tmp_path, monkeypatch):
    reproduction, seen = sys.modules["minitune.experiments.reproduction"], []
    for module in (reproduction, MODULE):
        tune = module.tune_language_model
        monkeypatch.setattr(module, "tune_language_model", lambda model, *given, tune=tune, **settings: seen.append(
            next(model.parameters()).data.dtype.name) or tune(model, *given, **settings))
    monkeypatch.setattr(MODULE, "run_one", lambda task, spec: seen.append(task.dtype) or run_one(task, spec))
    reproduce("ulmfit.table5", trec, backbone, tmp_path, TINY, progress=False, texts=trec, dtype="float64", device="cpu")
    assert len(seen) == 2 + 2 + 2 * 2 + 2 * 2 and set(seen) == {"float64"}     # bases, stage two; rates, runs
    monkeypatch.setattr(reproduction, "sample_efficiency", lambda *_, **settings: pytest.fail(settings["device"]))
    with pytest.raises(pytest.fail.Exception, match="cuda"):
        reproduce("ulmfit.table4", trec, backbone, tmp_path, TINY, progress=False, device="cuda")


def test_the_base_may_be_a_runs_folder_and_is_described_before_the_runs(trec, backbone, tmp_path, monkeypatch):
    reproduction = sys.modules["minitune.experiments.reproduction"]
    shutil.copytree(backbone, tmp_path / "run" / "model")
    described = []
    monkeypatch.setattr(reproduction, "_described", described.append)
    monkeypatch.setattr(reproduction, "sample_efficiency", lambda dataset, backbone, **_: pytest.fail(
        f"{len(described)} described: {backbone}"))
    with pytest.raises(pytest.fail.Exception, match="1 described: .*run.model"):
        reproduce("ulmfit.table4", trec, tmp_path / "run", tmp_path / "out", TINY, progress=False)


def test_figure_3_is_run_with_the_plain_baseline_and_ends_with_all_labels(trec, backbone, tmp_path):
    pytest.importorskip("sklearn", reason="scikit-learn, the baseline, is not installed")
    found = reproduce("ulmfit.figure3", trec, backbone, tmp_path, TINY, progress=False)
    assert found.results.methods == ["scratch", "supervised", "semi-supervised", "semi-supervised, standardized", "tf-idf"]
    assert found.results.sizes_of("scratch") == [4, 8, 16, 40] and found.results.sizes_of("supervised") == [4, 8]
    assert len(found.claims()) == 2


def test_errors_name_what_there_is(toy, trec, backbone, tmp_path):
    with pytest.raises(ValueError, match="one of ulmfit.table4, .*, ulmfit.figure3, got 'ulmfit.table9'"):
        reproduce("ulmfit.table9", trec, backbone, tmp_path)
    with pytest.raises(ValueError, match=r"'imdb' \(IMDb\), 'trec' \(TREC-6\), 'ag_news_22k' \(AG\); the one given is 'toy'"):
        reproduce("ulmfit.table4", toy, backbone, tmp_path)
    with pytest.raises(ValueError, match="one of small, medium, full, or a Scale, got 'huge'"):
        reproduce("ulmfit.table4", trec, backbone, tmp_path, scale="huge")
    with pytest.raises(ValueError, match="Give it something to read: texts="):
        reproduce("ulmfit.table5", trec, backbone, tmp_path)
    with ThreadPoolExecutor(1) as threads, pytest.raises(ValueError, match="ThreadPoolExecutor"):
        reproduce("ulmfit.table5", trec, backbone, tmp_path, TINY, texts=trec, executor=threads)
    with pytest.raises(ValueError, match="500 labels were asked for, but there are 40"):
        reproduce("ulmfit.table4", trec, backbone, tmp_path, progress=False)
    assert not list(tmp_path.iterdir())

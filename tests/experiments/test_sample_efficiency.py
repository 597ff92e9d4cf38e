"""The experiment end to end on a toy: the protocol it promises is the one it runs."""

import json
import sys
import tracemalloc
from dataclasses import replace
from hashlib import sha256

import pytest
from safetensors.numpy import load_file, save_file

from minitune import tune
from minitune.data import Tokenizer
from minitune.experiments import Protocol, pretrain, sample_efficiency
from minitune.experiments.recipe import plain
from minitune.experiments.runner import read_lines
from minitune.experiments.sample_efficiency import METHODS, make_task, run_one
from minitune.models import BERT, BERTConfig, MaskedLanguageModel, from_pretrained

from .conftest import TINY

PROTOCOL = Protocol(sizes=(4, 8), scratch_sizes=(16,), seeds=(0, 1), sweep_at=(4,), least_steps=4, epochs=1, batch_size=4,
                    longest=2, rates={"scratch": (1e-2, 3e-2), "frozen": (1e-2,), "full": (1e-2,), "lora": (1e-2,)})
MODULE = sys.modules["minitune.experiments.sample_efficiency"]      # the package's attribute of this name is the function
COLUMNS = {"method", "labels", "seed", "error", "trainable_parameters", "total_parameters", "seconds", "peak_memory_mb"}


@pytest.fixture(scope="module")
def finished(toy, backbone, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return sample_efficiency(toy, backbone, out, PROTOCOL, progress=False), out


def test_every_run_is_a_line_with_the_promised_columns(finished):
    results, out = finished
    lines = read_lines(out / "results.jsonl")
    assert all(set(line) >= COLUMNS for line in lines)
    assert len(lines) == len(results.rows) == 2 * (2 * 4 + 1 + 2 + 1)     # scratch and tf-idf have one size more
    assert all(0 <= line["error"] <= 1 and line["peak_memory_mb"] > 0 for line in lines)


def test_rates_are_chosen_without_the_test_set(finished):
    _, out = finished
    sweep = read_lines(out / "sweep.jsonl")
    assert len(sweep) == 2                      # two rates for scratch; where there is one there is nothing to choose
    assert all("valid_error" in line and "error" not in line and "wrong" not in line for line in sweep)
    scratch = {line["rate"]: (line["valid_error"], line["valid_loss"]) for line in sweep if line["method"] == "scratch"}
    used = {line["rate"] for line in read_lines(out / "results.jsonl") if line["method"] == "scratch"}
    assert used == {min(scratch, key=scratch.__getitem__)}


def test_scratch_trains_at_least_as_long_as_the_tuned(finished):
    results, _ = finished
    for size in PROTOCOL.sizes:
        tuned = max(row["steps"] for name in ("frozen", "full", "lora") for row in results.runs(name, size))
        assert all(row["steps"] >= tuned for row in results.runs("scratch", size))


def test_methods_train_what_they_say(finished):
    results, _ = finished
    trained = {name: results.mean("trainable_parameters", name, 4) for name in METHODS}
    assert trained["scratch"] == trained["full"] == results.mean("total_parameters", "full", 4)
    assert trained["frozen"] == 2 * 16 and trained["frozen"] < trained["lora"] < trained["full"]


def test_a_second_call_runs_nothing_and_gives_the_same(finished, toy, backbone, monkeypatch):
    results, out = finished
    monkeypatch.setattr(MODULE, "run_one", lambda task, spec: pytest.fail(f"ran again: {spec}"))
    again = sample_efficiency(toy, backbone, out, PROTOCOL, progress=False)
    assert again.rows == results.rows


def test_the_same_run_gives_the_same_errors(finished, toy, backbone):
    results, _ = finished
    row = results.runs("lora", 4)[1]
    spec = {name: row[name] for name in ("method", "labels", "seed", "rate")}
    assert run_one(make_task(toy, backbone, METHODS, PROTOCOL), spec)["wrong"] == row["wrong"]


def test_pretraining_is_read_again_only_for_the_same_settings_and_texts(toy, backbone, tmp_path, monkeypatch):
    record = json.loads((backbone / "pretraining.json").read_text())
    assert record["perplexity"] > 1 and record["fingerprint"] == toy.fingerprint
    monkeypatch.setattr("minitune.experiments.pretraining.Trainer", None)
    pretrain(toy, backbone, TINY, progress=False)                           # nothing is trained
    with pytest.raises(TypeError):
        pretrain(toy, tmp_path, replace(TINY, seed=1), progress=False)      # this one would have been


def test_errors(toy, backbone, tmp_path):
    with pytest.raises(ValueError, match="no learning rates for dora"):
        sample_efficiency(toy, backbone, tmp_path, PROTOCOL, methods={"dora": tune.FullConfig()})
    with pytest.raises(FileNotFoundError, match="from_pretrained: there is no folder"):
        sample_efficiency(toy, tmp_path / "nothing", tmp_path, PROTOCOL, progress=False)
    with pytest.raises(ValueError, match="but there are 40. Ask for fewer"):
        sample_efficiency(toy, backbone, tmp_path, replace(PROTOCOL, sizes=(4, 400)), progress=False)


@pytest.mark.filterwarnings("ignore:overflow:RuntimeWarning", "ignore:invalid value:RuntimeWarning",
                            "ignore:divide by zero:RuntimeWarning")     # the run diverges on purpose
def test_a_rate_that_diverges_is_a_result_and_not_the_end(toy, backbone, tmp_path):
    protocol = replace(PROTOCOL, sizes=(4,), scratch_sizes=(), seeds=(0,), rates={"full": (1e-2, 1e30)})
    results = sample_efficiency(toy, backbone, tmp_path, protocol, {"full": tune.FullConfig()}, baseline=False, progress=False)
    assert [row["rate"] for row in results.rows] == [1e-2]
    assert results.settings["rates_at_the_edge"] == ["full at 4 labels: 0.01"]


def test_a_method_added_later_leaves_the_others_as_they_are(toy, backbone, tmp_path, monkeypatch):
    protocol = replace(PROTOCOL, sizes=(4,), scratch_sizes=(), seeds=(0,), rates={"full": (1e-2,), "lora": (1e-2,)})
    sample_efficiency(toy, backbone, tmp_path, protocol, {"full": tune.FullConfig()}, baseline=False, progress=False)
    ran = []
    monkeypatch.setattr(MODULE, "run_one", lambda task, spec: ran.append(spec["method"]) or run_one(task, spec))
    both = {"full": tune.FullConfig(), "lora": tune.LoRAConfig(r=2)}
    sample_efficiency(toy, backbone, tmp_path, protocol, both, baseline=False, progress=False)
    assert ran == ["lora"]


def test_another_model_is_not_overwritten(toy, backbone):
    before = (backbone / "model.safetensors").read_bytes()
    with pytest.raises(ValueError, match="holds another model .seed 0, not 1.*Give another folder"):
        pretrain(toy, backbone, replace(TINY, seed=1), progress=False)
    assert (backbone / "model.safetensors").read_bytes() == before


def test_a_missing_scikit_learn_is_told_before_any_run(toy, backbone, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.feature_extraction.text", None)
    monkeypatch.setattr(MODULE, "run_one", lambda task, spec: pytest.fail("a run was begun"))
    with pytest.raises(ImportError, match="baseline=False"):
        sample_efficiency(toy, backbone, tmp_path, PROTOCOL, progress=False)


def test_a_bert_under_a_masked_language_model_is_tuned_as_one_that_sees_both_sides(toy, tmp_path):
    tokenizer = Tokenizer.train(toy.train.texts, 300, masked=True)
    model = MaskedLanguageModel(BERT(BERTConfig(tokenizer.vocab_size, 16, 1, 2, 16)))
    model.tokenizer = tokenizer
    model.save_pretrained(tmp_path / "bert")
    task = make_task(toy, tmp_path / "bert", METHODS, PROTOCOL)
    batch = task.train.batch([0])
    assert (batch.last == batch.ids.shape[1] - 1).all() and batch.ids[0, 0] == tokenizer.start
    results = sample_efficiency(toy, tmp_path / "bert", tmp_path / "out", replace(PROTOCOL, sizes=(4,), scratch_sizes=()),
                                progress=False)
    assert results.mean("total_parameters", "scratch", 4) == results.mean("total_parameters", "full", 4)


def test_a_backbone_in_shards_is_known_by_all_of_them_and_one_in_a_file_by_that_file(toy, backbone, tmp_path):
    def known_as(folder):
        return MODULE._common(toy, folder, {"full": plain(tune.FullConfig())})["full"]["backbone"]

    assert known_as(backbone) == sha256((backbone / "model.safetensors").read_bytes()).hexdigest()[:8]
    from_pretrained(backbone).save_pretrained(tmp_path / "shards", max_shard_bytes=10_000)
    shards = sorted((tmp_path / "shards").glob("model-*.safetensors"))
    assert len(shards) > 1
    before = known_as(tmp_path / "shards")
    protocol = replace(PROTOCOL, sizes=(4,), scratch_sizes=(), seeds=(0,), rates={"full": (1e-2,)})
    results = sample_efficiency(toy, tmp_path / "shards", tmp_path / "out", protocol, {"full": tune.FullConfig()},
                                baseline=False, progress=False)
    assert [row["backbone"] for row in results.rows] == [before]
    save_file({name: array + 1 for name, array in load_file(shards[-1]).items()}, shards[-1])
    assert known_as(tmp_path / "shards") != before


def test_a_run_is_not_charged_for_what_is_loaded_once(toy, backbone, monkeypatch):
    """Whatever the model and the method use has been used before time and memory are measured; once a process."""
    monkeypatch.setattr(MODULE, "_loaded", set())
    steps, task = [], make_task(toy, backbone, METHODS, PROTOCOL)

    class Counted(MODULE.Trainer):
        def train_step(self, batches, rate):
            steps.append((tracemalloc.is_tracing(), batches[0].ids.shape[0]))
            return super().train_step(batches, rate)

    for module in (MODULE, sys.modules["minitune.experiments.recipe"]):
        monkeypatch.setattr(module, "Trainer", Counted)
    for _ in range(2):
        run_one(task, {"method": "lora", "labels": 4, "seed": 0, "rate": 1e-2})
    assert steps == [(False, 1), *[(True, 4)] * 8]

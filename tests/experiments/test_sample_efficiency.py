"""The experiment end to end on a toy: the protocol it promises is the one it runs."""

import json
import shutil
import sys
import tracemalloc
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from hashlib import sha256

import pytest
from safetensors.numpy import load_file, save_file

from minitune import tune
from minitune.data import Split, Tokenizer, overlap
from minitune.experiments import LanguageModelStage, Protocol, Recipe, pretrain, sample_efficiency
from minitune.experiments.recipe import plain, texts_of, tune_language_model
from minitune.experiments.runner import read_lines
from minitune.experiments.sample_efficiency import METHODS, make_task, run_one
from minitune.models import BERT, BERTConfig, MaskedLanguageModel, from_pretrained

from .conftest import TINY

PROTOCOL = Protocol(sizes=(4, 8), scratch_sizes=(16,), seeds=(0, 1), sweep_at=(4,), least_steps=4, epochs=1, batch_size=4,
                    longest=2, rates={"scratch": (1e-2, 3e-2), "frozen": (1e-2,), "full": (1e-2,), "lora": (1e-2,)})
STAGE = LanguageModelStage(least_steps=2, batch_size=8)
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

    files = [(backbone / "model.safetensors").read_bytes(), repr(from_pretrained(backbone).config).encode(),
             (backbone / "tokenizer.json").read_bytes()]
    assert known_as(backbone) == sha256(b"".join(files)).hexdigest()[:8]
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


def test_a_backbone_is_known_by_its_config_and_its_tokenizer_too(toy, backbone, tmp_path):
    """The same weights under other settings, other tokens or another direction give other runs."""
    def known_as(folder):
        recipes = {"full": plain(tune.FullConfig()), "scratch": plain(tune.FullConfig(), pretrained=False)}
        return [MODULE._common(toy, folder, recipes)[name]["backbone"] for name in recipes]

    model = from_pretrained(backbone)
    sizes = repr(model.config).encode() + (backbone / "tokenizer.json").read_bytes()
    assert known_as(backbone)[1] == sha256(sizes).hexdigest()[:8]       # runs from scratch made before are still known
    model.tokenizer.backward = True
    model.save_pretrained(tmp_path / "backward")
    shutil.copytree(backbone, tmp_path / "tokens")
    (tmp_path / "tokens" / "tokenizer.json").write_bytes((backbone / "tokenizer.json").read_bytes() + b"\n")
    shutil.copytree(backbone, tmp_path / "config")
    config = json.loads((backbone / "config.json").read_text(encoding="utf-8"))
    (tmp_path / "config" / "config.json").write_text(json.dumps(config | {"layer_norm_epsilon": 1e-3}), encoding="utf-8")
    known = [known_as(folder) for folder in (backbone, *(tmp_path / name for name in ("backward", "tokens", "config")))]
    assert all(len(set(column)) == 4 for column in zip(*known))


def test_a_label_count_given_twice_is_run_once_and_a_seed_given_twice_is_refused(toy, backbone, tmp_path):
    protocol = replace(PROTOCOL, sizes=(4, 8, 4), scratch_sizes=(8, 16))
    assert protocol.sizes_of("scratch") == protocol.sizes_of("tf-idf") == (4, 8, 16) and protocol.sizes_of("full") == (4, 8)
    for name in ("seeds", "sweep_seeds"):
        with pytest.raises(ValueError, match=rf"protocol.{name} has a seed twice, \(0, 1, 0\)"):
            sample_efficiency(toy, backbone, tmp_path, replace(PROTOCOL, **{name: (0, 1, 0)}), progress=False)


def test_runs_from_scratch_that_had_not_stalled_are_told(finished):
    results, _ = finished
    longest = {n: PROTOCOL.steps(n) * 2 for n in (4, 8, 16)}
    ended = {n: [row["steps"] for row in results.runs("scratch", n)].count(most) for n, most in longest.items()}
    assert results.settings["scratch_not_stalled"] == [f"scratch at {n} labels: {count} of 2 runs"
                                                       for n, count in ended.items() if count]
    rows = [{"method": method, "labels": 4, "steps": steps} for method, steps in (("scratch", 8), ("scratch", 7), ("full", 8))]
    said = MODULE.not_stalled([*rows, {"method": "tf-idf", "labels": 4}], MODULE.as_recipes(METHODS), PROTOCOL)
    assert said == ["scratch at 4 labels: 1 of 2 runs"]


def test_the_settings_say_how_many_test_texts_may_be_read_before(toy, backbone, tmp_path):
    long = [" ".join([text] * 3) for text in toy.test.texts]            # 18 words: sequences of 13 can be compared
    seen = Split([*toy.unlabelled.texts, *(f"{text} again" for text in long[:3])])
    known = replace(toy, splits=toy.splits | {"unlabelled": seen, "test": Split(long, toy.test.labels)})
    protocol = replace(PROTOCOL, sizes=(4,), scratch_sizes=(), seeds=(0,))
    settings = sample_efficiency(known, backbone, tmp_path, protocol, {"full": tune.FullConfig()}, baseline=False,
                                 progress=False).settings
    assert settings["overlap"] == {"toy": str(overlap(texts_of(known), long))}
    assert settings["overlap"]["toy"].startswith("3 of 30 texts")


def test_a_recipe_with_a_language_model_is_refused_on_a_model_that_is_none(toy, tmp_path):
    tokenizer = Tokenizer.train(toy.train.texts, 300, masked=True)
    model = BERT(BERTConfig(tokenizer.vocab_size, 16, 1, 2, 16))
    model.tokenizer = tokenizer
    model.save_pretrained(tmp_path / "bert")
    with pytest.raises(ValueError, match="staged would tune a language model first, and .*bert holds none but a BERT"):
        sample_efficiency(toy, tmp_path / "bert", tmp_path / "out", replace(PROTOCOL, rates={"staged": (1e-2,)}),
                          {"staged": Recipe(language_model=STAGE)}, progress=False)
    assert not (tmp_path / "out").exists()


def staged(toy, backbone, out, **recipe):
    """One run on a language model that was tuned on all texts."""
    protocol = replace(PROTOCOL, sizes=(4,), scratch_sizes=(), seeds=(0,), rates={"staged": (1e-2,)}, trace_memory=False)
    return sample_efficiency(toy, backbone, out, protocol, {"staged": Recipe(**{"language_model": STAGE} | recipe)},
                             baseline=False, progress=False)


def test_a_moved_folder_keeps_its_language_models_and_a_lost_one_is_tuned_anew(toy, backbone, tmp_path):
    rows = staged(toy, backbone, tmp_path / "out").rows
    line, = read_lines(tmp_path / "out" / "language_models.jsonl")
    (tmp_path / "out").rename(tmp_path / "moved")
    (tmp_path / "moved" / "results.jsonl").unlink()
    again = staged(toy, backbone, tmp_path / "moved").rows
    assert [row["wrong"] for row in again] == [row["wrong"] for row in rows] and not (tmp_path / "out").exists()
    assert read_lines(tmp_path / "moved" / "language_models.jsonl") == [line] and "/" not in line["folder"]
    known = tmp_path / "moved" / "language_models.jsonl"
    known.write_text(json.dumps(line | {"folder": f"/elsewhere/language_models/{line['folder']}"}) + "\n", encoding="utf-8")
    staged(toy, backbone, tmp_path / "moved")                           # lines of before had whole paths
    assert len(read_lines(known)) == 1
    weights = tmp_path / "moved" / "language_models" / line["folder"] / "model.safetensors"
    weights.unlink()
    staged(toy, backbone, tmp_path / "moved")
    assert weights.exists()


def test_checkpoints_go_after_the_line_is_written(toy, backbone, tmp_path, monkeypatch):
    """Where the line is lost, the training is found again by its checkpoints."""
    written = []
    monkeypatch.setattr(MODULE, "remove_checkpoints", lambda folder: written.extend(
        read_lines(tmp_path / "language_models.jsonl")))
    staged(toy, backbone, tmp_path)
    assert len(written) == 1


def test_threads_are_refused_before_a_language_model_is_tuned(toy, backbone, tmp_path):
    with ThreadPoolExecutor(1) as threads, pytest.raises(ValueError, match="ThreadPoolExecutor"):
        sample_efficiency(toy, backbone, tmp_path, PROTOCOL, {"full": Recipe(language_model=STAGE)}, baseline=False,
                          progress=False, executor=threads)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("texts", ["unlabelled", "labelled"])
def test_a_recipes_dropout_is_that_of_its_language_model_too(texts, toy, backbone, tmp_path, monkeypatch):
    given = []

    def noted(*arguments, **settings):
        given.append(settings["dropout"])
        return tune_language_model(*arguments, **settings)

    monkeypatch.setattr(MODULE, "tune_language_model", noted)
    staged(toy, backbone, tmp_path, dropout=0.25, language_model=replace(STAGE, texts=texts))
    assert given and set(given) == {0.25}


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

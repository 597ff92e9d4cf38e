"""compare end to end on a toy: methods are treated alike, and every column says what it claims to."""

import json
import pickle
import sys
from dataclasses import replace
from functools import partial

import numpy as np
import pytest

import minitune as mt
from minitune import experiments, models, tune
from minitune.data import Dataset, Split, Tokenizer, nested_subsets
from minitune.experiments import Comparison, FewShot, LoRAPlus, Pretraining, Protocol, Recipe, Results, compare, pretrain
from minitune.experiments.compare import Costs, GeneralText, _peak_mb, general_text, speaking
from minitune.experiments.published_lora import LOW_DATA, PROMPTED, RATE_RATIOS, TABLE_16
from minitune.experiments.recipe import plain
from minitune.experiments.runner import RunFailed, read_lines
from minitune.experiments.sample_efficiency import make_task, run_one, sets_of
from minitune.experiments.tuning_methods import KNOWN, Prompting, chosen_methods, rates_of
from minitune.train import evaluate

MODULE = sys.modules["minitune.experiments.sample_efficiency"]      # the package's attribute of this name is the function
L, C, V = 2, 16, 300                            # layers, channels, tokens of the base
TINY = Pretraining(vocab_size=V, block_size=64, n_layer=L, n_head=2, n_embd=C, steps=3, batch_size=4, held_out=2)
METHODS = {**KNOWN, "prefix": tune.PrefixConfig(length=4), "prompt": tune.PromptConfig(length=5),
           "few-shot": FewShot(k=2, template="{text} is: {label}\n")}
RATES = {**dict.fromkeys(METHODS, (1e-2,)), "full": (1e-3, 1e-2), "lora": (1e-2, 1e-1)}
PROTOCOL = Protocol(sizes=(4, 8), seeds=(0, 1), fewer_seeds=((4, 1),), sweep_at=(4,), least_steps=4, epochs=1, batch_size=4,
                    evaluations=2, rates=RATES)
GENERAL = ["the sea at last, and a boat upon it", "bark and moss, leaf and tree, all the way down"] * 3
TEXTS = 400


@pytest.fixture(scope="module")
def base(toy, tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    pretrain(toy, folder, TINY, progress=False)
    return folder


@pytest.fixture(scope="module")
def finished(toy, base, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    return compare(toy, base, METHODS, out, PROTOCOL, general=GENERAL, progress=False), out


def small(toy, base, out, methods=("full", "lora"), general=GENERAL, **changes):
    """A comparison of a few runs."""
    protocol = replace(PROTOCOL, **{"sizes": (4,), "seeds": (0,), **changes})
    return compare(toy, base, methods, out, protocol, general=general, progress=False)


def trained_again(toy, base, row):
    """The ended trainer of a run, made by the parts that the run is made of."""
    task = make_task(toy, base, chosen_methods(METHODS), replace(PROTOCOL, trace_memory=False))
    mt.seed(row["seed"])
    rows = nested_subsets(task.train.labels, [row["labels"]], row["seed"])[row["labels"]]
    recipe = task.methods[row["method"]]
    backbone = models.from_pretrained(base)
    model = recipe.classifier(backbone, task.labels, PROTOCOL.pooling)
    train, valid, _ = sets_of(task, row["method"], model, rows)
    trainer = recipe.trainer(model, train, valid, rate=row["rate"], steps=4, batch_size=4, evaluate_every=2, progress=False)
    trainer.fit()
    return trainer


# ---- Methods are treated alike -------------------------------------------------------------------------------------

def test_every_method_makes_as_many_steps_and_the_same_subsets_decide(finished):
    found, _ = finished
    rows = found.results.rows
    assert len(rows) == len(METHODS) * (2 + 1) and set(found.methods) == set(KNOWN)
    for n in PROTOCOL.sizes:
        assert {row["steps"] for row in rows if row["labels"] == n and row["method"] != "few-shot"} == {4}
    assert all(0 <= row["error"] <= 1 and row["test_texts"] == 30 for row in rows)


def test_rates_are_chosen_by_validation_alone_and_told(finished):
    found, out = finished
    sweep = read_lines(out / "sweep.jsonl")
    assert {line["method"] for line in sweep} == {"full", "lora"} and len(sweep) == 4
    assert all("error" not in line and "general_loss" not in line for line in sweep)
    for name in "full", "lora":
        scores = {line["rate"]: (line["valid_error"], line["valid_loss"]) for line in sweep if line["method"] == name}
        assert found.rate(name, 4) == found.rate(name, 8) == min(scores, key=scores.__getitem__)
    assert found.rate_ratio(4) == found.rate("lora", 4) / found.rate("full", 4)
    told = found.rates()
    assert "4 labels" in told and told.count("*") == 1 + 2 and "One rate, not chosen: head 0.01" in told
    assert f"LoRA's best rate is {found.rate_ratio(4):.3g} times full's at 4 labels" in told and "40 (Hu et al. 2021)" in told


@pytest.mark.parametrize("method, trained", [
    ("full", None), ("head", 0), ("top2", 2 * (12 * C * C + 13 * C) + 2 * C), ("bitfit", L * 11 * C + C),
    ("lora", L * 8 * (4 * 2 * C + 2 * 5 * C)), ("rslora", L * 8 * (4 * 2 * C + 2 * 5 * C)),
    ("lora+", L * 8 * (4 * 2 * C + 2 * 5 * C)), ("pissa", L * 8 * (4 * 2 * C + 2 * 5 * C)),
    ("dora", L * (8 * (4 * 2 * C + 2 * 5 * C) + 9 * C)), ("adapters", L * 2 * (2 * C * 32 + C + 32) + (4 * L + 2) * C),
    ("prefix", 2 * L * 4 * C), ("prompt", 5 * C), ("ia3", L * (2 * C + 4 * C))])
def test_each_method_trains_what_its_formula_says_and_the_head(finished, method, trained):
    found, _ = finished
    total = found.results.mean("total_parameters", "full", 4)
    expected = total if trained is None else trained + 2 * C
    assert found.results.mean("trainable_parameters", method, 4) == expected
    added = 0 if method in ("full", "head", "top2", "bitfit") else trained
    added -= (4 * L + 2) * C if method == "adapters" else 0                 # norms are trained, not added
    assert found.results.mean("total_parameters", method, 4) == total + added
    assert found.share(method, 4) == pytest.approx(expected / (total + added))


@pytest.mark.parametrize("method", [name for name in METHODS if name != "few-shot"])
def test_every_head_reads_standardised_features(method, toy, base):
    trainer = trained_again(toy, base, {"method": method, "seed": 0, "labels": 8, "rate": 1e-9})
    assert isinstance(trainer.model.head, tune.StandardizedLinear)


def test_a_model_from_scratch_has_features_as_they_are_and_a_recipe_of_ones_own_stays_as_it_is():
    own = plain(tune.FullConfig())
    chosen = chosen_methods({"full": tune.FullConfig(), "scratch": tune.FullConfig(), "own": own})
    assert chosen["full"].standardize and not chosen["scratch"].standardize and chosen["own"] is own


def test_lora_plus_has_its_own_optimizer(toy, base):
    recipe = chosen_methods(["lora+"])["lora+"]
    model = recipe.classifier(models.from_pretrained(base), toy.labels, "mean")
    task = make_task(toy, base, {"lora+": recipe}, PROTOCOL)
    trainer = recipe.trainer(model, task.train, task.valid, rate=1e-3, steps=1, batch_size=4, progress=False)
    rates = {id(p): group.rate for group in trainer.optimizer.groups for p in group.parameters}
    assert {rates[id(p)] for name, p in model.named_parameters() if name.endswith(".B")} == {16.0}
    assert {rates[id(p)] for name, p in model.named_parameters() if not name.endswith(".B")} == {1.0}
    assert LoRAPlus(ratio=4.0).ratio == 4.0 and trainer.optimizer.betas == (0.9, 0.999)


@pytest.mark.parametrize("method", ["prefix", "prompt"])
def test_texts_are_cut_to_what_virtual_tokens_leave(method, toy, base, tmp_path):
    long = {name: replace(split, texts=[" ".join([text] * 12) for text in split.texts]) for name, split in toy.splits.items()}
    dataset = replace(toy, splits=long)
    task = make_task(dataset, base, chosen_methods(METHODS), PROTOCOL)
    model = task.methods[method].classifier(models.from_pretrained(base), toy.labels, "mean")
    room = model.backbone.config.block_size
    assert room < 64 == max(map(len, task.train.documents))
    for given in sets_of(task, method, model, np.arange(4)):
        assert max(map(len, given.documents)) == room
    assert small(dataset, base, tmp_path, {method: METHODS[method]}).error(method, 4)[0] <= 1


def test_prompting_trains_nothing_and_reads_the_labels_of_its_run(finished, toy, base):
    found, _ = finished
    for row in found.results.runs("few-shot", 8):
        assert (row["trainable_parameters"], row["training_seconds"], row["file_mb"], row["steps"]) == (0, 0.0, 0.0, 0)
        assert row["k"] == 2 and row["text_tokens"] >= 8 and "peak_memory_mb" not in row
        rows = nested_subsets(toy.train.labels, [8], row["seed"])[8]
        settings = replace(METHODS["few-shot"], text_tokens=row["text_tokens"], seed=row["seed"])
        shot = experiments.few_shot(models.from_pretrained(base), toy.train.subset(rows), toy.test, toy.labels, settings)
        assert shot.error(toy.test) == row["error"]


def test_prompting_is_validated_on_the_validation_texts(toy, base, tmp_path):
    """Most of them are of one class, so that even a prompt that always says the same errs otherwise than on the test texts."""
    valid = toy.valid.subset(np.array([0, 2, 4, 6, 1]))
    dataset = replace(toy, splits=toy.splits | {"valid": valid})
    row, = small(dataset, base, tmp_path, {"few-shot": METHODS["few-shot"]}).results.rows
    rows = nested_subsets(toy.train.labels, [4], row["seed"])[4]
    settings = replace(METHODS["few-shot"], text_tokens=row["text_tokens"], seed=row["seed"])
    shot = experiments.few_shot(models.from_pretrained(base), toy.train.subset(rows), valid, toy.labels, settings)
    assert row["valid_error"] == shot.error(valid) != row["error"]


def test_a_prompt_takes_as_many_texts_as_fit(base):
    model = models.from_pretrained(base)
    settings = [Prompting(settings=FewShot(k=k, template="{text} is: {label}\n")).fitted(model, ("sea", "wood"), count, 3)
                for k, count in ((50, 50), (50, 1), (0, 4))]
    assert 0 < settings[0].k < 50 and settings[0].text_tokens >= 8
    assert [given.k for given in settings[1:]] == [1, 0] and settings[1].text_tokens > settings[0].text_tokens
    given = Prompting(settings=FewShot(k=1, text_tokens=3)).fitted(model, ("sea", "wood"), 4, 3)
    assert (given.text_tokens, given.seed) == (3, 3)


# ---- What a run costs ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("method", ["full", "lora", "prefix"])
def test_forgetting_is_the_loss_of_the_tuned_model_as_a_language_model(method, finished, toy, base):
    """By hand: the trained weights in a model that was never a classifier, or merged; float32, some roundings of 6e-8."""
    found, _ = finished
    row = found.results.runs(method, 4)[0]
    trainer = trained_again(toy, base, row)
    documents, _ = general_text(base, GENERAL)
    plain_base = models.from_pretrained(base)
    assert row["general_loss_before"] == pytest.approx(evaluate(plain_base, GeneralText(documents))["loss"], rel=1e-6)
    if method == "prefix":
        reader = trainer.model.backbone
    else:
        if method == "lora":
            tune.merge(trainer.model)
        plain_base.load_state_dict(trainer.model.backbone.state_dict())
        reader = plain_base
    assert row["general_loss"] == pytest.approx(evaluate(reader, GeneralText(documents))["loss"], rel=1e-5)
    assert row["general_loss"] != row["general_loss_before"]
    mean, least, most = found.forgetting(method, 4)
    assert least <= mean <= most and row["general_loss"] - row["general_loss_before"] in (least, most)


def test_what_leaves_the_base_alone_forgets_exactly_nothing(finished):
    found, _ = finished
    assert found.forgetting("head", 4) == found.forgetting("few-shot", 8) == (0.0, 0.0, 0.0)


def tiny_llama():
    return models.Llama(models.LlamaConfig(V, 32, 1, 2, 16, tied=False))


def tiny_awd_lstm():
    return models.AWDLSTM(models.AWDLSTMConfig(V, n_embd=8, n_hidden=8, n_layer=1))


@pytest.mark.parametrize("make", [tiny_llama, tiny_awd_lstm])
def test_a_classifiers_backbone_gets_its_output_back(make):
    mt.seed(0)
    model, text = make(), GeneralText([np.arange(5), np.arange(9, 12)])
    for p in model.parameters():                # a bias that is not 0
        p.data = p.data + 0.1
    bare = models.Classifier(model, ["no", "yes"]).backbone
    assert bare.headless
    whole = speaking(bare, model)
    assert evaluate(whole, text)["loss"] == evaluate(model, text)["loss"]
    assert bare.headless                        # as it was


def test_general_text_is_cut_into_pieces_of_half_a_row(base):
    pieces, about = general_text(base, ["wave " * 300, "moss", "a boat"])
    assert max(map(len, pieces)) == 32 and min(map(len, pieces)) > 1
    assert about["tokens"] == sum(map(len, pieces)) and about["name"] == "given"
    assert general_text(base, ["moss " * 20_000])[1]["tokens"] == 16_384
    assert about["fingerprint"] != general_text(base, ["wave " * 299])[1]["fingerprint"]


def test_without_a_general_text_it_is_the_validation_texts_of_pydocs(toy, base, monkeypatch):
    asked, dataset = [], replace(toy, version="CPython 3")
    monkeypatch.setattr(sys.modules["minitune.experiments.compare"], "load", lambda name: asked.append(name) or dataset)
    pieces, about = general_text(base, None)
    assert asked == ["pydocs"] and about["name"] == "pydocs CPython 3"
    assert about["fingerprint"] == general_text(base, toy.valid.texts)[1]["fingerprint"] and len(pieces) == len(toy.valid)


def test_the_file_is_as_large_as_one_of_all_that_was_trained(finished, toy, base, tmp_path):
    from safetensors.numpy import save_file
    found, _ = finished
    row = found.results.runs("lora", 4)[0]
    model = trained_again(toy, base, row).model
    save_file({name: p.data for name, p in model.named_parameters() if p.requires_grad}, tmp_path / "trained.safetensors")
    size = (tmp_path / "trained.safetensors").stat().st_size
    assert row["file_mb"] * 2**20 == pytest.approx(size, abs=200)           # rounded to 1e-4 MB, and a few bytes of header
    full, head = (found.cost("file_mb", name, 4) for name in ("full", "head"))
    assert full > row["file_mb"] > head > 0


def test_pissa_is_kept_as_the_lora_of_twice_the_rank_that_save_adapter_writes(finished):
    found, _ = finished
    factors = L * 8 * (4 * 2 * C + 2 * 5 * C) * 4           # bytes of A and B at first, beside those that trained
    pissa, lora = (found.cost("file_mb", name, 4) * 2**20 for name in ("pissa", "lora"))
    assert pissa - lora == pytest.approx(factors, abs=L * 6 * 2 * 120)   # and a header of at most 120 bytes for each of them


def test_peak_memory_is_of_steps_alone(toy, base, monkeypatch):
    """What was taken and given back before the first step, as a file that is read, does not count."""
    module = sys.modules["minitune.experiments.compare"]
    task = make_task(toy, base, chosen_methods(["head"]), PROTOCOL)
    spec, rows, plain_model = {"method": "head", "seed": 0, "rate": 1e-3}, np.arange(4), module.fresh_model
    usual = _peak_mb(task, spec, rows)

    def wasteful(*given):
        np.ones(2**23)                          # 64 MB, gone at once
        return plain_model(*given)

    monkeypatch.setattr(module, "fresh_model", wasteful)
    assert _peak_mb(task, spec, rows) < usual + 8


def test_forgetting_is_not_measured_on_the_texts_that_choose_rates(toy, base, tmp_path):
    with pytest.raises(ValueError, match="on the validation texts of toy, by which rates are chosen. Give other texts"):
        small(toy, base, tmp_path, general=[*GENERAL, toy.valid.texts[3]])
    with pytest.raises(ValueError, match="on the validation texts of pydocs"):
        small(replace(toy, name="pydocs"), base, tmp_path, general=None)
    assert not list(tmp_path.iterdir())


def test_memory_and_time_are_of_training(finished):
    found, _ = finished
    memory = {name: found.cost("peak_memory_mb", name, 4) for name in METHODS if name != "few-shot"}
    weights = found.results.mean("total_parameters", "full", 4) * 4 / 2**20
    assert memory["full"] > 4 * weights         # weights, gradients and two moments
    assert weights < memory["head"] < memory["full"]
    assert all(0 < row["training_seconds"] < row["seconds"] for row in found.results.rows if row["method"] != "few-shot")


# ---- Going on ------------------------------------------------------------------------------------------------------

def test_a_second_call_runs_nothing_and_gives_the_same(finished, toy, base, monkeypatch):
    found, out = finished
    monkeypatch.setattr(MODULE, "run_one", lambda task, spec: pytest.fail(f"ran again: {spec}"))
    again = compare(toy, base, METHODS, out, PROTOCOL, general=GENERAL, progress=False)
    assert again.results.rows == found.results.rows and again.table() == found.table()


def test_what_was_interrupted_goes_on_run_by_run(toy, base, tmp_path, monkeypatch):
    ran = []

    def interrupted(task, spec):
        ran.append(spec)
        if len(ran) == 6:
            raise OSError("the disk is gone")
        return run_one(task, spec)

    monkeypatch.setattr(MODULE, "run_one", interrupted)
    with pytest.raises(RunFailed, match="the disk is gone"):
        small(toy, base, tmp_path, seeds=(0, 1))
    found = small(toy, base, tmp_path, seeds=(0, 1))
    assert len(ran) == 4 + 4 + 1 and len(found.results.rows) == 4           # the one that failed twice, the others once


def test_another_general_text_or_method_leaves_what_it_does_not_change(toy, base, tmp_path, monkeypatch):
    ran = []
    small(toy, base, tmp_path)

    def noted(task, spec):
        ran.append((spec["method"], "sweep" in spec))
        return run_one(task, spec)

    monkeypatch.setattr(MODULE, "run_one", noted)
    small(toy, base, tmp_path, general=GENERAL[:1])
    assert ran == [("full", False), ("lora", False)]            # the rates that were chosen stay
    small(toy, base, tmp_path, ("full", "lora", "ia3"))
    assert ran[2:] == [("ia3", False)]


def test_lines_of_sample_efficiency_are_known_by_what_they_were(toy, base, tmp_path):
    """Runs that were made before there was `compare` are found again: neither their entries nor their digest changed."""
    methods = {"full": tune.FullConfig()}
    protocol = replace(PROTOCOL, sizes=(4,), seeds=(0,), rates={"full": (1e-2,)})
    experiments.sample_efficiency(toy, base, tmp_path, protocol, methods, baseline=False, progress=False)
    line, = read_lines(tmp_path / "results.jsonl")
    assert list(line)[:9] == ["method", "labels", "seed", "rate", "recipe", "dataset", "fingerprint", "minitune", "backbone"]
    assert "general" not in line and "file_mb" not in line
    assert MODULE._recipe(Protocol(), plain(tune.FullConfig())) == "8da3cc68"


def test_a_run_can_be_sent_to_another_process(toy, base):
    documents, about = general_text(base, GENERAL)
    task = make_task(toy, base, chosen_methods(METHODS), replace(PROTOCOL, trace_memory=False))
    work = partial(run_one, replace(task, measure=Costs({"general": about["fingerprint"]}, documents)))
    spec = {"method": "lora+", "labels": 4, "seed": 0, "rate": 1e-2}
    one, other = work(spec), pickle.loads(pickle.dumps(work))(spec)
    timed = {"seconds", "training_seconds", "peak_memory_mb"}
    assert {name: one[name] for name in one if name not in timed} == {name: other[name] for name in one if name not in timed}


# ---- What is refused, before anything runs -------------------------------------------------------------------------

def named(kind, **settings):
    return {"mine": kind(**settings)}


@pytest.mark.parametrize("methods, expected", [
    (["full", "lorra"], "there is no method 'lorra'; there are full, head"), ([], "at least one method; there are full"),
    (named(tune.PrefixConfig, length=40), "'mine' leaves 24 of the 64 tokens"),
    (named(tune.LoRAConfig, target_modules="nothing"), "'nothing' matches nothing"),
    (named(FewShot, template="{text} " + "and so on " * 20 + "{label}"), "few-shot needs a base that reads more tokens than")])
def test_methods_that_do_not_fit_are_refused_before_any_run(methods, expected, toy, base, tmp_path):
    with pytest.raises(ValueError, match=expected):
        small(toy, base, tmp_path, methods)
    assert not list(tmp_path.iterdir())


def test_what_is_no_method_and_a_method_without_rates(toy, base, tmp_path):
    with pytest.raises(TypeError, match="expected for 'full' a method such as LoRAConfig"):
        compare(toy, base, {"full": "full"}, tmp_path)

    class Own:
        def install(self, model):
            tune.FullConfig().install(model)

    with pytest.raises(ValueError, match="no usual learning rates for 'own'.*Give some: Protocol"):
        compare(toy, base, {"own": Own()}, tmp_path)
    assert rates_of("lora r=1", plain(tune.LoRAConfig(r=1))) == rates_of("lora", plain(tune.LoRAConfig()))
    assert rates_of("dora", plain(tune.DoRAConfig())) == rates_of("lora", plain(tune.LoRAConfig()))
    tried = {name: rates_of(name, recipe) for name, recipe in chosen_methods(KNOWN).items()}
    assert tried.pop("few-shot") == (0.0,) and all(len(rates) == 5 for rates in tried.values())


@pytest.mark.parametrize("changes, expected", [
    ({"seeds": ()}, "protocol.seeds must be a tuple of at least one number"), ({"sizes": 4}, "protocol.sizes must be a tuple"),
    ({"rates": {"full": 1e-3}}, r"protocol.rates\['full'\] must be a tuple of learning rates, none below 0, got 0.001"),
    ({"rates": {"full": (1e-3, -1e-3)}}, "none below 0, got"), ({"general": GENERAL[0]}, r"got one text, .*Write \[text\]")])
def test_numbers_and_texts_that_cannot_work_are_refused_before_any_run(changes, expected, toy, base, tmp_path):
    with pytest.raises(ValueError, match=expected):
        small(toy, base, tmp_path, **changes)
    assert not list(tmp_path.iterdir())


def test_a_protocol_without_rates_gives_every_method_its_usual_ones(toy, base, tmp_path, monkeypatch):
    asked = {}

    def asking(dataset, folder, out, protocol, *rest, **settings):
        asked.update(protocol.rates)
        raise KeyboardInterrupt

    monkeypatch.setattr(sys.modules["minitune.experiments.compare"], "sample_efficiency", asking)
    with pytest.raises(KeyboardInterrupt):
        compare(toy, base, ["full", "lora"], tmp_path, Protocol(sizes=(4,)), general=GENERAL)
    assert asked == {name: rates_of(name, chosen_methods([name])[name]) for name in ("full", "lora")}


def test_a_template_may_hold_other_braces(toy, base, tmp_path):
    settings = FewShot(k=1, template='{"text": "{text}", "label": "{label}"}\n')
    assert 0 <= small(toy, base, tmp_path, {"asked": settings}).error("asked", 4)[0] <= 1


def test_weights_in_four_bits_count(toy, base, tmp_path):
    found = small(toy, base, tmp_path, {"lora": tune.LoRAConfig(r=2), "qlora": tune.QLoRAConfig(r=2)})
    assert found.share("qlora", 4) == found.share("lora", 4) < 1


def test_data_or_general_text_that_do_not_fit(toy, base, tmp_path):
    with pytest.raises(ValueError, match="compare: expected texts with labels"):
        compare(replace(toy, kind="text"), base, out=tmp_path)
    with pytest.raises(ValueError, match="general must hold texts"):
        small(toy, base, tmp_path, general=[""])
    with pytest.raises(ValueError, match="but there are 40. Ask for fewer"):
        small(toy, base, tmp_path, sizes=(400,))


def test_a_bert_is_compared_without_forgetting_and_cannot_be_prompted(toy, tmp_path, monkeypatch):
    tokenizer = Tokenizer.train(toy.train.texts, V, masked=True)
    bert = models.BERT(models.BERTConfig(tokenizer.vocab_size, 16, 1, 2, 16))
    bert.tokenizer = tokenizer
    bert.save_pretrained(tmp_path / "bert")
    monkeypatch.setattr(sys.modules["minitune.experiments.compare"], "load", lambda name: pytest.fail("a text was read"))
    found = small(toy, tmp_path / "bert", tmp_path / "out", ("full", "lora"), general=None)
    assert found.forgetting("full", 4) is None and found.table().splitlines()[-1].endswith("-")
    assert "forgotten" not in found.sentence() and "not measured" in found.beside_papers()
    assert len(found.plot()) == 2
    with pytest.raises(ValueError, match="few-shot prompts a model that predicts next tokens; BERT is none"):
        small(toy, tmp_path / "bert", tmp_path / "out", ["few-shot"], general=None)


# ---- What is said --------------------------------------------------------------------------------------------------

def made_up(errors, forgotten=None, labels=(100,), rates=None, name="made up"):
    """A comparison of {method: its error, or one a label count}: a method that errs more errs on the same texts and on more."""
    order, rows = np.random.default_rng(0).permutation(TEXTS), []
    for method, curve in errors.items():
        for n, error in zip(labels, curve if isinstance(curve, tuple) else (curve,)):
            for seed in range(3):
                wrong = order < round(error * TEXTS)
                rise = (forgotten or {}).get(method)
                rows.append({"method": method, "labels": n, "seed": seed, "rate": (rates or {}).get(method, 0.1),
                             "error": float(wrong.mean()), "valid_error": error, "test_texts": TEXTS,
                             "wrong": np.packbits(wrong).tobytes().hex(), "training_seconds": 2.0, "file_mb": 1.0,
                             "peak_memory_mb": 3.0, "trainable_parameters": 1000 if method == "full" else 20,
                             "total_parameters": 1000}
                            | ({} if rise is None else {"general_loss": 3 + rise[seed], "general_loss_before": 3.0}))
    sweep = [{"method": method, "labels": n, "seed": 0, "rate": rate * factor, "valid_error": 0.1 * factor, "valid_loss": 1.0}
             for method, rate in (rates or {}).items() for n in labels for factor in (1, 3)]
    return Comparison(Results(rows, {"dataset": name, "sweep": sweep, "rates_at_the_edge": ["full at 100 labels: 0.1"]}))


def test_a_sentence_says_which_errs_less_or_that_they_cannot_be_told_apart():
    found = made_up({"full": 0.2, "lora": 0.2}, {"full": (0.3, 0.2, 0.4), "lora": (0.1, 0.1, 0.1)})
    assert found.sentence() == (
        "lora and full are not distinguishable at 100 labels: their errors differ by +0.0 points (95 % interval +0.0 to +0.0), "
        "with 2 % of full's trained parameters, 1 times its training time, 1 times its memory, 1 times its file's size and "
        "+0.100 nats a token forgotten against +0.300.")
    assert made_up({"full": 0.2, "lora": 0.1}).sentence().startswith("lora errs 10.0 points less than full at 100 labels")
    assert made_up({"full": 0.2, "lora": 0.3}).sentence().startswith("lora errs 10.0 points more than full at 100 labels")
    assert "nothing to compare" in made_up({"full": 0.2}).sentence()
    near = made_up({"full": 0.2, "lora": 0.2})
    for row in near.results.rows:
        row["peak_memory_mb"] -= 0.01 * (row["method"] == "lora")
    assert "99.7 % of its memory" in near.sentence()
    found = made_up({"head": 0.5, "ia3": 0.2})
    assert found.reference == "head" and found.sentence().startswith("ia3 errs 30.0 points less than head")


def test_a_method_without_costs_has_a_sentence():
    rows = [dict(method=method, labels=4, seed=0, rate=0.0, error=0.5, valid_error=0.5, test_texts=8, wrong="f0",
                 training_seconds=0.0, trainable_parameters=0, total_parameters=9) for method in ("few-shot", "asked again")]
    said = Comparison(Results(rows, {})).sentence(labels=4)
    assert said.startswith("asked again and few-shot are not distinguishable at 4 labels") and said.endswith(").")


def test_the_table_tells_of_runs_side_by_side_and_rates_of_other_sizes():
    found = made_up({"full": (0.2, 0.1), "lora": (0.2, 0.1)}, labels=(100, 1_000))
    assert "side by side" not in found.table() and "labels are those chosen at" not in found.rates()
    found.results.settings["sweep"] = made_up({"full": 0.2}, rates={"full": 1e-3}).results.settings["sweep"]      # at 100 alone
    found.results.settings |= {"workers": 2, "protocol": {"sweep_at": (100,)}}
    assert "2 runs side by side" in found.table() and "Rates for 1,000 labels are those chosen at 100." in found.rates()


@pytest.mark.parametrize("lora, verdict", [(0.2, "not distinguishable"), (0.1, "better"), (0.3, "worse")])
def test_a_table_gives_the_difference_and_its_verdict(lora, verdict):
    found = made_up({"full": 0.2, "lora": lora}, {"full": (0.3, 0.2, 0.4), "lora": (0.1, 0.0, -0.1)})
    assert found.verdict("lora", 100) == verdict
    line = found.table().splitlines()[-1]
    assert f"{100 * (lora - 0.2):+.1f} [" in line and verdict in line and "2.00%" in line
    assert line.endswith("+0.000 [-0.100, +0.100]") and "3 seeds" in found.table()


def test_rates_are_shown_with_the_best_and_lora_s_over_full_s():
    found = made_up({"full": 0.2, "lora": 0.2}, rates={"full": 1e-3, "lora": 1e-2})
    assert found.rate_ratio(100) == pytest.approx(10)
    lines = found.rates().splitlines()
    assert lines[2].split() == ["100", "labels", "0.001", "0.003", "0.01", "0.03"]
    assert lines[3].split() == ["full", "10.0", "*", "30.0"] and lines[4].split() == ["lora", "10.0", "*", "30.0"]
    assert "LoRA's best rate is 10 times full's at 100 labels" in lines[-1] and "Best at the edge" in found.rates()
    assert made_up({"full": 0.2, "lora": 0.2}).rate_ratio(100) is None      # nothing was chosen


def test_beside_table_16_stands_whether_the_side_is_the_same():
    found = made_up({"full": (0.2, 0.2, 0.2), "lora": (0.1, 0.3, 0.2), "prefix": (0.5, 0.5, 0.5), "prompt": (0.2, 0.5, 0.5),
                     "few-shot": (0.6, 0.6, 0.6)}, labels=(120, 1_000, 50))
    told = found.beside_papers()
    table, *_ = told.split("\n\n")
    lines = {tuple(line.split()[:2]): line for line in table.splitlines()[2:]}
    assert {labels for labels, _ in lines} == {"120", "1,000"}              # none of the paper's columns is near 50
    assert "+3.6" in lines["120", "lora"] and "+10.0 [" in lines["120", "lora"] and lines["120", "lora"].endswith("same")
    assert "-0.2" in lines["1,000", "lora"]
    assert lines["1,000", "lora"].endswith("there not distinguishable, here worse")
    assert "-11.9" in lines["120", "prefix"] and lines["120", "prefix"].endswith("same")
    assert "-22.6" in lines["120", "prompt"] and lines["120", "prompt"].endswith("there worse, here not distinguishable")
    assert "few-shot 40.6, fine-tuned 89.5" in told and "few-shot 40.0, full 80.0" in told


@pytest.mark.parametrize("lora, full, says", [
    ((0.1, 0.1, 0.1), (0.2, 0.3, 0.2), "holds"), ((0.4, 0.4, 0.4), (0.2, 0.3, 0.2), "reversed"),
    ((0.1, 0.4, 0.1), (0.2, 0.3, 0.2), "in 2 of 3 seeds")])
def test_biderman_s_claims_are_judged_whichever_way_they_go(lora, full, says):
    found = made_up({"full": 0.2, "lora": 0.3}, {"full": full, "lora": lora})
    assert found.forgets_less(100) == says
    cells = [cell.strip() for cell in found.beside_papers().splitlines()[-1].split("  ") if cell.strip()]
    assert cells[0] == "100" and cells[2] == "holds" and cells[-1] == says
    assert cells[3:5] == [f"{np.mean(given):+.3f}" for given in (lora, full)]
    assert "reversed" in made_up({"full": 0.3, "lora": 0.2}).beside_papers()        # it learned more


def test_published_figures_are_those_of_the_papers():
    assert [LOW_DATA["LoRA", n].value for n in (100, 1_000, 10_000, 392_000)] == [63.8, 85.6, 89.2, 91.7]
    assert TABLE_16["Fine-Tune"] == (60.2, 85.8, 88.9, 89.5) and TABLE_16["PrefixEmbed"] == (37.6, 75.2, 79.5, 88.6)
    assert TABLE_16["PrefixLayer"] == (48.3, 82.5, 85.9, 89.6) and [figure.value for figure in PROMPTED] == [40.6, 89.5]
    assert [figure.value for figure in RATE_RATIOS] == [40, 10, 9.8]
    assert all(figure.paper and figure.place and figure.measured for figure in (*LOW_DATA.values(), *PROMPTED, *RATE_RATIOS))


def test_json_holds_everything_and_is_read_back(finished, tmp_path):
    found, _ = finished
    found.to_json(tmp_path / "found.json")
    again, stored = Comparison.from_json(tmp_path / "found.json"), json.loads((tmp_path / "found.json").read_text())
    assert again.table() == found.table() == "\n".join(stored["table"]) and again.rates() == found.rates()
    assert again.beside_papers() == "\n".join(stored["beside_papers"]) and len(stored["sentences"]) == 2
    assert stored["settings"]["general"]["name"] == "given" and stored["settings"]["base"]["model"] == "GPT"
    assert stored["settings"]["protocol"]["trace_memory"] is False
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match="has no runs, settings. Was it written by to_json"):
        Comparison.from_json(tmp_path / "other.json")


def test_three_plots_are_drawn(finished, tmp_path):
    pytest.importorskip("matplotlib", reason="the plots need matplotlib")
    found, _ = finished
    figures = found.plot(tmp_path)
    assert {file.name for file in tmp_path.iterdir()} == {"error_against_parameters.png", "error_against_seconds.png",
                                                          "forgetting_against_learning.png"}
    assert [len(figure.axes) for figure in figures] == [2, 2, 2]
    assert [text.get_text() for text in figures[0].legends[0].get_texts()] == list(METHODS)
    assert figures[0].axes[0].get_ylabel() == "test error, %" and figures[2].axes[0].get_ylabel() == "forgotten, nats a token"


def test_scratch_has_nothing_to_forget(toy, base, tmp_path):
    found = small(toy, base, tmp_path, {"full": tune.FullConfig(), "scratch": tune.FullConfig()},
                  rates={"full": (1e-2,), "scratch": (1e-2,)}, longest=1)
    assert found.forgetting("scratch", 4) is None and found.forgetting("full", 4) is not None


def test_a_dataset_of_one_s_own_and_a_recipe_of_one_s_own(base, tmp_path):
    labels = np.arange(40) % 2
    split = Split([("wave shell", "leaf bark")[label] for label in labels], labels)
    dataset = Dataset("own", ("sea", "wood"), {"train": split, "valid": split, "test": split}, citation="")
    recipe = Recipe(pooling="mean")             # ULMFiT's third stage
    found = compare(dataset, base, {"ulmfit": recipe, "r=1": tune.LoRAConfig(r=1)}, tmp_path, PROTOCOL, sizes=[4], seeds=[3],
                    general=GENERAL, progress=False)
    assert found.methods == ["ulmfit", "r=1"] and {row["seed"] for row in found.results.rows} == {3} and found.sizes == [4]
    assert found.reference == "ulmfit"

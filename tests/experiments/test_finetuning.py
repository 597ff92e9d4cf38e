"""finetune: every kind of data and every method, from any base; resumed it is the same, and it says what it did."""

from dataclasses import replace
from shutil import copytree

import numpy as np
import pytest

from minitune import models
from minitune.data import Dataset, Example, ImageSplit, Split, Tokenizer
from minitune.experiments import Finetuned, Finetuning, finetune
from minitune.experiments.finetuning import as_set, base_model
from minitune.experiments.text_classifier import texts_as_set
from minitune.models import GPT, Classifier, from_pretrained
from minitune.nn import Linear
from minitune.train import Trainer, predict, predict_proba
from minitune.tune.lora import LoRALinear

QUICK = Finetuning(epochs=2, batch_size=8)


def examples(kind, count):
    random = np.random.default_rng(count)
    words = random.choice(["wave", "tide", "tree", "leaf"], (count, 2))
    if kind == "completion":
        return [Example.completion(f"{a} ", f"{a} {b}") for a, b in words]
    return [Example.chat([{"role": "user", "content": a}, {"role": "assistant", "content": b}]) for a, b in words]


def dataset(kind, toy, **counts):
    counts = counts or {"train": 32, "valid": 8}
    if kind == "classification":
        return toy
    if kind == "text":
        splits = {name: Split(toy.train.texts[:count]) for name, count in counts.items()}
    else:
        made = {name: examples(kind, count) for name, count in counts.items()}
        splits = {name: Split([example.text for example in split], examples=split) for name, split in made.items()}
    return Dataset("made up", (), splits, "", kind=kind)


def tune(data, base, settings=QUICK, **changes):
    return finetune(data, base, replace(settings, **changes), progress=False)


def weights(model):
    return {name: array.tobytes() for name, array in model.state_dict().items()}


def measured(made):
    """The history without what a clock said."""
    return [{name: value for name, value in row.items() if name not in ("tokens_per_second", "peak_mb")}
            for row in made.trainer.history.rows]


@pytest.mark.parametrize("kind", ["classification", "text", "completion", "chat"])
@pytest.mark.parametrize("method", ["full", "lora"])
def test_every_kind_is_learned_and_the_model_comes_back_from_its_folder(kind, method, toy, backbone, tmp_path):
    made = tune(dataset(kind, toy), backbone, method=method, epochs=4)
    assert isinstance(made, Finetuned) and isinstance(made.model, Classifier if kind == "classification" else GPT)
    first, *_, last = made.trainer.history["valid_loss"]
    assert last < first
    assert (made.report.trainable < made.report.total) == (method == "lora")
    made.model.save_pretrained(tmp_path)
    assert weights(from_pretrained(tmp_path)) == weights(made.model)


def test_a_classifiers_labels_are_stored_with_its_head(toy, backbone, tmp_path):
    made = tune(toy, backbone, epochs=6)
    made.model.save_pretrained(tmp_path)
    model = from_pretrained(tmp_path)
    assert model.labels == toy.labels == ("sea", "wood")
    rows = as_set(toy.test, toy.kind, model.tokenizer, model.backbone.config.block_size)
    assert np.mean(predict(model, rows) == toy.test.labels) == 1.0


def test_of_a_completion_the_prompt_is_read_and_not_learned(toy, backbone):
    """As many targets as the completions and their ends have tokens."""
    data, tokenizer = dataset("completion", toy), base_model(backbone).tokenizer
    rows = as_set(data.train, data.kind, tokenizer, 16)
    completions = [e.text[slice(*e.supervised[0])] for e in data.train.examples]
    assert rows.batch(np.arange(len(rows))).supervised == sum(len(ids) + 1 for ids in tokenizer.encode_batch(completions))


def test_lora_is_merged_and_certified(toy, backbone):
    made = tune(toy, backbone, method="lora")
    assert not any(isinstance(part, LoRALinear) for _, part in made.model.named_modules())
    assert len(made.certificate.layers) == 6 and made.certificate.gap < 1e-5 * made.certificate.largest + 1e-6
    assert made.notes[-1] == str(made.certificate) and "merged 6 adapted layers; logits moved by at most" in made.notes[-1]
    assert tune(toy, backbone).certificate is None


def test_frozen_trains_the_head_alone(toy, backbone):
    made = tune(toy, backbone, method="frozen")
    assert made.report.trainable == 2 * 16
    assert weights(made.model.backbone) == weights(from_pretrained(backbone))


def test_a_gpt_reads_standardised_means_unless_a_pooling_is_asked_for(toy, backbone):
    made, asked = (finetune(toy, backbone, replace(QUICK, pooling=pooling), progress=False) for pooling in (None, "mean"))
    assert made.model.pooling == "mean" == asked.model.pooling and type(made.model.head) is Linear      # folded
    assert made.model.head.bias is not None and asked.model.head.bias is None
    assert made.trainer.lr == 2 * asked.trainer.lr


def test_settings_reach_the_training(toy, backbone):
    """Two batches of 4 a step are one of 8, to the last bits; an average of the weights is another model."""
    one, two = tune(toy, backbone, batch_size=8), tune(toy, backbone, batch_size=4, accumulate=2)
    assert one.trainer.step == two.trainer.step == 2 * 5
    for name, array in one.model.state_dict().items():
        np.testing.assert_allclose(two.model.state_dict()[name], array, atol=1e-4)     # Adam divides by tiny gradients
    assert tune(toy, backbone, ema=0.9).trainer.average.decay == 0.9
    assert tune(toy, backbone, pooling="concat").model.head.weight.shape == (2, 3 * 16)


# ---- bases -------------------------------------------------------------------------------------------------------

def test_a_base_is_a_folder_a_runs_folder_or_a_model(toy, backbone, tmp_path):
    copytree(backbone, tmp_path / "model")
    expected = weights(tune(toy, backbone).model)
    assert all(weights(tune(toy, base).model) == expected for base in (str(backbone), tmp_path, from_pretrained(backbone)))


@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_model_given_as_base_stays_as_it_is(method, toy, backbone):
    gpt = from_pretrained(backbone)
    before = weights(gpt)
    made = tune(toy, gpt, method=method)
    assert weights(gpt) == before and not gpt.training and all(p.requires_grad for p in gpt.parameters())
    assert weights(made.model.backbone) != before


def test_of_a_classifier_the_backbone_is_the_base(toy, backbone, tmp_path):
    """Tuned on one task, it goes on to another: here to write, and to tell three labels apart."""
    first = tune(toy, backbone).model
    first.save_pretrained(tmp_path)
    assert weights(base_model(tmp_path)) == weights(base_model(first)) == weights(first.backbone)
    assert isinstance(tune(dataset("text", toy), tmp_path).model, GPT)
    three = Dataset("three", ("a", "b", "c"), {"train": Split(toy.train.texts, np.arange(40) % 3)}, "")
    made = tune(three, tmp_path, method="frozen").model
    assert made.labels == ("a", "b", "c") and weights(made.backbone) == weights(first.backbone)


def test_a_base_that_cannot_be_tuned_is_told(toy, backbone, tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no folder .*nothing. Nothing is downloaded"):
        tune(toy, tmp_path / "nothing")
    copytree(backbone, tmp_path / "silent")
    (tmp_path / "silent" / "tokenizer.json").unlink()
    for base in (tmp_path / "silent", from_pretrained(tmp_path / "silent"), None):
        with pytest.raises(ValueError, match="finetune: the base must be a model of texts, .* got"):
            tune(toy, base)


# ---- what a person is told ---------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", ["classification", "completion", "chat"])
def test_texts_that_were_cut_are_counted(kind, toy, backbone):
    long = " ".join(["tide"] * 40)
    rows = dataset(kind, toy)
    if kind == "classification":
        texts = [long, long, *toy.train.texts[2:]]
        train = Split(texts, toy.train.labels)
    else:
        more = [Example.completion(long, " tide"), Example.chat([{"role": "user", "content": long},
                                                                 {"role": "assistant", "content": "wave"}])]
        given = rows.train.examples[2:] if kind == "completion" else []
        train = Split([""] * (len(given) + 2), examples=[*given, *more])
    notes = tune(replace(rows, splits={"train": train, "valid": rows.valid}), backbone).notes
    assert notes[0] == f"train: 2 of {len(train)} texts are longer than the model's 16 tokens and were cut"


def test_without_validation_the_last_weights_are_kept_and_it_says_so(toy, backbone):
    made = tune(replace(toy, splits={"train": toy.train}), backbone, epochs=3)
    assert made.notes == ["there is no validation split: the last weights are kept"]
    assert made.trainer.best is None and made.trainer.step == 3 * 5


def test_few_validation_rows_are_watched_and_choose_nothing(toy, backbone):
    made = tune(toy, backbone, epochs=3, patience=1)
    assert made.notes == ["20 validation rows are too few to choose an epoch by: the last weights are kept"]
    assert made.trainer.best is None and len(made.trainer.history["valid_error"]) == 3


def test_with_validation_the_best_epoch_is_kept_and_patience_ends(toy, backbone, monkeypatch):
    """A rate that is far too high after labels that say nothing: it gets worse, and two epochs later it stops."""
    monkeypatch.setattr("minitune.experiments.finetuning.ENOUGH", 20)
    noise = replace(toy, splits={"train": Split(toy.train.texts, np.arange(40) // 2 % 2), "valid": toy.valid})
    made = tune(noise, backbone, epochs=12, patience=2, lr=3e-2)
    errors = [(row["valid_error"], row["valid_loss"]) for row in made.trainer.history.rows]
    best = errors.index(min(errors))
    assert made.trainer.best.step == 5 * (best + 1) and len(errors) == best + 3 < 12
    rows = as_set(toy.valid, toy.kind, made.model.tokenizer, 16)
    assert np.mean(predict(made.model, rows) != toy.valid.labels) == errors[best][0]


def test_a_text_that_is_shorter_than_a_row_makes_one_shorter_row(toy, backbone):
    made = tune(dataset("text", toy, train=32, valid=1), backbone)
    assert made.trainer.valid.ids.shape[0] == 1 and made.trainer.valid.ids.shape[1] < 16
    assert len(made.trainer.history["valid_loss"]) == 2
    tiny = Dataset("tiny", (), {"train": Split(["wave tide"])}, "", kind="text")
    assert tune(tiny, backbone).trainer.train.ids.shape[0] == 1


# ---- out and resume ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind, settings", [
    ("classification", {"method": "full", "ema": 0.9}), ("classification", {"method": "lora", "accumulate": 2}),
    ("classification", {"method": "frozen"}), ("text", {"method": "lora"}), ("completion", {"method": "full"})])
def test_interrupted_and_resumed_it_is_the_uninterrupted_one(kind, settings, toy, backbone, tmp_path, monkeypatch):
    data, settings = dataset(kind, toy), replace(QUICK, epochs=4, **settings)
    whole = finetune(data, backbone, settings, tmp_path / "whole", progress=False)
    step = Trainer.train_step

    def interrupted(trainer, *inputs):
        if trainer.step == trainer.steps // 2 + 1:
            raise KeyboardInterrupt
        return step(trainer, *inputs)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Trainer, "train_step", interrupted)
        finetune(data, backbone, settings, tmp_path / "cut", progress=False)
    with pytest.raises(ValueError, match=r"holds a training that reached step .* fit\(resume=True\)"):
        finetune(data, backbone, settings, tmp_path / "cut", progress=False)
    again = finetune(data, backbone, settings, tmp_path / "cut", resume=True, progress=False)
    assert weights(again.model) == weights(whole.model) and measured(again) == measured(whole) and again.notes == whole.notes

    monkeypatch.setattr(Trainer, "train_step", None)                # what has ended is not trained again
    ended = finetune(data, backbone, settings, tmp_path / "cut", resume=True, progress=False)
    assert weights(ended.model) == weights(whole.model) and measured(ended) == measured(whole)


def test_a_run_with_other_settings_is_not_resumed(toy, backbone, tmp_path):
    finetune(toy, backbone, QUICK, tmp_path, progress=False)
    before = {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    with pytest.raises(ValueError, match="is of another training: lr was 0.016, is 0.5"):
        finetune(toy, backbone, replace(QUICK, lr=0.5), tmp_path, resume=True, progress=False)
    assert {file: file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()} == before


# ---- errors ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("kind", ["text", "completion", "chat"])
def test_frozen_has_nothing_to_train_in_a_language_model(kind, toy, backbone):
    with pytest.raises(ValueError, match="with method='frozen' a new head alone trains, and a language model gets none. Take"):
        tune(dataset(kind, toy), backbone, method="frozen")


def test_images_are_refused(backbone):
    images = ImageSplit(np.zeros((4, 8, 8), np.uint8), np.arange(4) % 2)
    with pytest.raises(ValueError, match="finetune: expected texts, got a data set of kind 'images'"):
        tune(Dataset("dots", ("a", "b"), {"train": images}, "", kind="images"), backbone)


@pytest.mark.parametrize("change, message", [
    ({"method": "dora"}, "Finetuning: method must be one of frozen, full, lora, got 'dora'"),
    ({"epochs": 0}, "Finetuning: epochs must be at least 1, got 0"),
    ({"batch_size": 0}, "Finetuning: batch_size must be at least 1, got 0"),
    ({"accumulate": -1}, "Finetuning: accumulate must be at least 1, got -1"),
    ({"lr": 0.0}, "Finetuning: lr must be above 0, got 0.0. None takes the method's usual rate"),
    ({"lr": float("nan")}, "Finetuning: lr must be above 0, got nan"),
])
def test_settings_that_cannot_work_are_told(change, message):
    with pytest.raises(ValueError, match=message):
        Finetuning(**change)


@pytest.mark.parametrize("kind", ["BERT", "Llama"])
def test_other_models_are_tuned_on_labels_and_read_again(kind, toy, tmp_path):
    tokenizer = Tokenizer.train(toy.train.texts, 300, masked=True)
    sizes = dict(vocab_size=tokenizer.vocab_size, block_size=16, n_layer=1, n_head=2, n_embd=8)
    base = models.MaskedLanguageModel(models.BERT(models.BERTConfig(**sizes))) if kind == "BERT" \
        else models.Llama(models.LlamaConfig(**sizes))
    base.tokenizer = tokenizer
    base.save_pretrained(tmp_path / "base")
    made = finetune(toy, tmp_path / "base", Finetuning(method="lora", epochs=1), progress=False)
    made.model.save_pretrained(tmp_path / "tuned")
    again = from_pretrained(tmp_path / "tuned")
    rows = texts_as_set(again, toy.valid.texts)
    assert rows.causal == (kind == "Llama")
    assert (rows.documents[0][0], rows.documents[0][-1]) == (tokenizer.start, tokenizer.end)
    np.testing.assert_array_equal(predict_proba(again, rows), predict_proba(made.model, rows))


def test_a_model_that_reads_both_ways_is_not_asked_to_write(toy, tmp_path):
    base = models.BERT(models.BERTConfig(300, 16, 1, 2, 8))
    base.tokenizer = Tokenizer.train(toy.train.texts, 300, masked=True)
    with pytest.raises(ValueError, match="as BERT, writes no text and needs labelled texts, got a data set of kind 'text'"):
        tune(dataset("text", toy), base)

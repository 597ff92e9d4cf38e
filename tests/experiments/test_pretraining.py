"""pretrain: interrupted it goes on and ends the same, another run's folder is left alone, and any texts will do."""

import json
import shutil
from dataclasses import replace
from math import exp

import pytest

from minitune.data import Dataset, Split, Tokenizer
from minitune.experiments import pretrain, pretraining
from minitune.models import from_pretrained
from minitune.train import Trainer

from .conftest import TINY

LONGER = replace(TINY, steps=20)
STEP = Trainer.train_step


def interrupt_at(monkeypatch, step):
    def interrupted(trainer, *inputs):
        if trainer.step == step:
            raise KeyboardInterrupt
        return STEP(trainer, *inputs)
    monkeypatch.setattr(Trainer, "train_step", interrupted)


def contents(folder):
    return {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.fixture
def halfway(toy, tmp_path, monkeypatch):
    """A folder with a pre-training that was interrupted at step 13 of 20."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, 13)
        pretrain(toy, tmp_path / "cut", LONGER, progress=False)
    return tmp_path / "cut"


def test_interrupted_it_goes_on_and_ends_bit_equal(toy, halfway, tmp_path, monkeypatch):
    pretrain(toy, tmp_path / "whole", LONGER, progress=False)
    made = []
    monkeypatch.setattr(Trainer, "train_step", lambda trainer, *inputs: made.append(trainer.step) or STEP(trainer, *inputs))
    pretrain(toy, halfway, LONGER, progress=False)
    assert made == list(range(12, 20))                      # from the last checkpoint on
    for name in ("model.safetensors", "config.json", "tokenizer.json", "pretraining.json"):
        assert (halfway / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def test_no_checkpoint_is_left(toy, halfway):
    assert list((halfway / "checkpoints").iterdir())
    pretrain(toy, halfway, LONGER, progress=False)
    assert not (halfway / "checkpoints").exists()


@pytest.mark.parametrize("other", [{"seed": 1}, {"steps": 30}, {"n_embd": 8}, {"vocab_size": 280}, {"backward": True}])
def test_the_beginning_of_another_model_is_refused_and_left_alone(other, toy, halfway, tmp_path):
    before = contents(halfway)
    (name, value), = other.items()
    with pytest.raises(ValueError, match=f"holds another model .{name} {getattr(LONGER, name)}, not {value}.*another folder"):
        pretrain(toy, halfway, replace(LONGER, **other), progress=False)
    assert contents(halfway) == before


def test_other_texts_are_refused(toy, halfway):
    others = Dataset("others", toy.labels, {**toy.splits, "unlabelled": Split(toy.train.texts[:30] * 3)}, "")
    with pytest.raises(ValueError, match="holds another model .dataset 'toy', not 'others', fingerprint"):
        pretrain(others, halfway, LONGER, progress=False)


def test_settings_that_failed_before_the_first_checkpoint_are_not_in_the_way(toy, tmp_path, monkeypatch):
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        interrupt_at(patch, 1)
        pretrain(toy, tmp_path, LONGER, progress=False)
    pretrain(toy, tmp_path, TINY, progress=False)
    assert json.loads((tmp_path / "pretraining.json").read_text())["steps"] == 3


def test_the_history_and_the_record_say_how_it_went(toy, backbone):
    columns, *rows = [line.split(",") for line in (backbone / "history.csv").read_text().splitlines()]
    losses = [float(row[columns.index("valid_loss")]) for row in rows]
    assert len(losses) == 3 and losses[-1] < losses[0]
    record = json.loads((backbone / "pretraining.json").read_text())
    assert record["perplexity"] == pytest.approx(exp(min(losses)), rel=1e-6)    # of the weights that did best
    model = from_pretrained(backbone)
    assert record["parameters"] == model.num_parameters() and record["tokens_read"] == 3 * 4 * 16
    assert record["training_tokens"] % 16 == 0 and record["dataset"] == "toy"


def test_history_goes_to_out_if_that_is_given(toy, tmp_path):
    pretrain(toy, tmp_path / "run" / "model", TINY, progress=False, out=tmp_path / "run")
    assert (tmp_path / "run" / "history.csv").exists() and not (tmp_path / "run" / "checkpoints").exists()
    assert sorted(file.name for file in (tmp_path / "run" / "model").iterdir()) == [
        "config.json", "model.safetensors", "pretraining.json", "tokenizer.json"]


def test_a_backward_model_reads_every_text_from_its_end(toy, tmp_path, seen):
    pretrain(toy, tmp_path, replace(TINY, backward=True), progress=False)
    model = from_pretrained(tmp_path)
    forward = Tokenizer.train(toy.unlabelled.texts, TINY.vocab_size)
    assert model.tokenizer.backward
    (ids,), (turned,) = (tokenizer.encode_batch(toy.train.texts[:1]) for tokenizer in (forward, model.tokenizer))
    assert turned == ids[::-1] and seen["train"].ids.ravel()[: len(ids)].tolist() == turned != ids


def test_a_record_from_before_there_was_a_direction_is_of_a_forward_model(toy, backbone, tmp_path):
    shutil.copytree(backbone, tmp_path / "older")
    record = tmp_path / "older" / "pretraining.json"
    kept = {name: value for name, value in json.loads(record.read_text()).items() if name != "backward"}
    record.write_text(json.dumps(kept))
    assert not pretrain(toy, tmp_path / "older", TINY, progress=False).tokenizer.backward
    with pytest.raises(ValueError, match="holds another model .backward False, not True"):
        pretrain(toy, tmp_path / "older", replace(TINY, backward=True), progress=False)


@pytest.fixture
def seen(monkeypatch):
    """The model, the rows to train on and those to measure on, as the trainer gets them."""
    given = {}
    monkeypatch.setattr(pretraining, "Trainer", lambda model, train, valid, **settings: given.update(
        model=model, train=train, valid=valid) or Trainer(model, train, valid, **settings))
    return given


@pytest.mark.parametrize("kind, splits, read, measured", [
    ("classification", ("unlabelled", "train", "valid"), "unlabelled", "unlabelled"),
    ("classification", ("train", "valid"), "train", "train"),
    ("text", ("unlabelled",), "unlabelled", "unlabelled"),
    ("text", ("train",), "train", "train"),
    ("text", ("train", "valid"), "train", "valid")])
def test_unlabelled_texts_are_read_else_those_of_train_and_held_out_are_texts_or_the_last_rows(kind, splits, read, measured,
                                                                                               toy, tmp_path, seen):
    named = {name: Split([f"{name} {text}" for text in toy.train.texts]) for name in splits}
    pretrain(Dataset("texts", (), named, "", kind=kind), tmp_path, TINY, progress=False)
    decoded = {name: seen["model"].tokenizer.decode(seen[name].ids.ravel()) for name in ("train", "valid")}
    assert [name for name in splits if name in decoded["train"]] == [read]
    assert [name for name in splits if name in decoded["valid"]] == [measured]


def test_of_few_rows_a_tenth_is_held_out(toy, tmp_path, seen):
    pretrain(toy, tmp_path, replace(TINY, held_out=64), progress=False)
    rows = len(seen["train"]) + len(seen["valid"])
    assert len(seen["valid"]) == rows // 10 < 64


@pytest.mark.parametrize("texts, message", [
    (["a few words"], "tokens do not fill a row of 16. Give more text or a smaller block_size"),
    (["the sea is grey"], "pretrain: the texts fill one row of 16 tokens, and two are needed")])
def test_too_little_text_is_told(texts, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        pretrain(Dataset("little", (), {"train": Split(texts)}, "", kind="text"), tmp_path, TINY, progress=False)
    assert not list(tmp_path.iterdir())


def test_images_are_refused(tmp_path):
    with pytest.raises(ValueError, match="pretrain: expected texts, got the images of dots"):
        pretrain(Dataset("dots", ("a", "b"), {}, "", kind="images"), tmp_path, TINY, progress=False)

"""Trainer: what a step is, which weights remain, when it stops, and what an error or an interruption leaves behind."""

import csv
import json

import numpy as np
import pytest

import minitune as mt
from minitune import models, tune
from minitune.data import Batch
from minitune.data.batch import ClassificationSet, LanguageModelSet
from minitune.formats.folder import read_tensors
from minitune.ops import IGNORE
from minitune.optim import SCHEDULES, SGD, AdamW
from minitune.train import Trainer, evaluate, remove_checkpoints

QUIET = {"progress": False}
FILES = ["best.safetensors", "checkpoints", "history.csv", "history.jsonl"]


def toy_set(count=32, seed=0, classes=2):
    """Texts of different length whose label is whether the token 7 stands in them."""
    draw = np.random.default_rng(seed)
    documents = [[int(i) for i in draw.integers(8, 20, draw.integers(2, 8))] for _ in range(count)]
    labels = np.arange(count) % classes
    for document, label in zip(documents, labels):
        if label:
            document[draw.integers(len(document))] = 7
    return ClassificationSet(documents, labels, block_size=8)


def classifier(dropout=0.0, seed=0):
    mt.seed(seed)
    return models.Classifier(models.GPT(models.GPTConfig(20, 8, 1, 2, 16, dropout)), ["without", "with"], "mean")


def weights(model):
    return {name: array.copy() for name, array in model.state_dict().items()}


def assert_same(a, b, atol=0.0):
    assert a.keys() == b.keys()
    for name in a:
        np.testing.assert_allclose(a[name], b[name], 0, atol, err_msg=name)


class Listed:
    """A set that hands out the batches it is given, one a call; an exception among them is raised."""

    def __init__(self, *batches):
        self.batches = list(batches)

    def __len__(self):
        return 1

    def batch(self, rows):
        one = self.batches.pop(0) if len(self.batches) > 1 else self.batches[0]
        if isinstance(one, BaseException):
            raise one
        return one


# ---- Accumulation --------------------------------------------------------------------------------------------------

def language_rows(draw, lengths):
    return [[[int(i) for i in draw.integers(0, 20, length)]] for length in lengths]


@pytest.mark.parametrize("kind", ["language model", "classifier"])
@pytest.mark.parametrize("optimizer", [SGD, AdamW])
def test_four_batches_of_two_do_what_one_of_eight_does(kind, optimizer):
    """Rows of different length, and some without any target: a mean of means would weigh them wrongly.

    Weights agree to 1e-6: float32 sums in another order. AdamW gets an eps above rounding, since it divides tiny
    gradients, which are rounding alone, by themselves.
    """
    draw = np.random.default_rng(0)
    steps = []
    for _ in range(3):
        rows = language_rows(draw, [8, 2, 3, 7, 2, 2, 5, 4])
        labels = [0, 1, IGNORE, IGNORE, 1, IGNORE, 0, 1] if kind == "classifier" else None
        steps.append((rows, labels))

    def train(size):
        model = classifier() if kind == "classifier" else classifier().backbone
        settings = {"eps": 1e-4} if optimizer is AdamW else {}
        trainer = Trainer(model, toy_set(), steps=1, lr=1e-2, optimizer=optimizer(model, 1e-2, **settings), **QUIET)
        losses = []
        for rows, labels in steps:
            batches = []
            for i in range(0, 8, size):
                batch = Batch.causal(rows[i : i + size], None if labels is None else labels[i : i + size])
                if labels is None and i + size == 8:
                    batch.targets[-1, :2] = IGNORE
                batches.append(batch)
            losses.append(trainer.train_step(batches, 1e-2))
        return losses, weights(model)

    (losses, one), (other_losses, four) = train(8), train(2)
    np.testing.assert_allclose(losses, other_losses, rtol=1e-6)
    assert_same(one, four, atol=1e-6)
    start = weights(classifier() if kind == "classifier" else classifier().backbone)
    assert max(np.abs(one[name] - start[name]).max() for name in one) > 1e-3


def test_accumulation_by_its_own_setting_equals_the_large_batch():
    """The same order of rows, cut into 4 x 2 or 1 x 8."""
    def train(batch_size, accumulate):
        model = classifier()
        Trainer(model, toy_set(), steps=3, lr=1e-2, batch_size=batch_size, accumulate=accumulate, schedule="constant",
                optimizer=AdamW(model, eps=1e-4), **QUIET).fit()
        return weights(model)

    assert_same(train(8, 1), train(2, 4), atol=1e-6)


def test_the_gradient_is_that_of_the_mean_over_all_targets_of_the_step():
    model, batches = classifier().backbone, [Batch.causal([[[1, 2, 3, 4]]]), Batch.causal([[[5, 6]]])]
    start = weights(model)
    mean = Trainer(model, Listed(batches[0]), steps=1, lr=1.0, optimizer=SGD(model, 1.0), clip=1e9, **QUIET).train_step(
        batches, 1.0)
    other = classifier().backbone
    losses = [other.loss(batch)["language_model"][0] for batch in batches]
    total = (losses[0] + losses[1]) * (1 / 4)   # 3 + 1 targets
    total.backward()
    np.testing.assert_allclose(mean, total.item(), rtol=1e-6)
    assert_same(weights(model), {name: start[name] - p.grad for name, p in other.named_parameters()}, atol=1e-6)


@pytest.mark.parametrize("pieces", [2, 5])
@pytest.mark.parametrize("kind", ["examples", "classifier"])
def test_what_users_ask_for_1_gradients_of_uneven_micro_batches_are_those_of_the_whole_batch(pieces, kind):
    """11 rows in micro-batches of different size, the last one short, with different numbers of supervised tokens.

    Agreement within 1e-6 of each parameter's largest gradient, in float64: in float32 the order of sums alone is more.
    """
    draw = np.random.default_rng(0)
    model = classifier() if kind == "classifier" else classifier().backbone
    for p in model.parameters():
        p.data = p.data.astype(np.float64)
    batch = Batch.causal([[draw.integers(0, 20, n).tolist()] for n in (8, 2, 3, 7, 2, 6, 5, 4, 8, 2, 3)],
                         draw.integers(0, 2, 11) if kind == "classifier" else None)
    if kind == "examples":
        batch.targets[draw.random(batch.targets.shape) < 0.4] = IGNORE
    trainer = Trainer(model, toy_set(), steps=1, lr=1e-2, **QUIET)

    def gradients(sizes):
        model.zero_grad()
        ends = np.cumsum(sizes)
        arrays = [batch.ids, batch.positions, batch.first, batch.last, batch.targets]
        parts = [Batch(*(array[end - size : end] for array in arrays)) for end, size in zip(ends, sizes)]
        mean = trainer._backward(parts)
        return mean, {name: p.grad for name, p in model.named_parameters()}

    (mean, whole), (other, parts) = gradients([11]), gradients({2: [7, 4], 5: [3, 1, 4, 2, 1]}[pieces])
    np.testing.assert_allclose(mean, other, rtol=1e-6)
    for name in whole:
        np.testing.assert_allclose(parts[name], whole[name], 0, 1e-6 * np.abs(whole[name]).max() + 1e-15, err_msg=name)
    assert max(np.abs(grad).max() for grad in whole.values()) > 1e-3


def test_gradients_left_by_others_are_not_part_of_a_step():
    """A backward before fit, or one that an interruption cut off, must not be added to the next step."""
    def train(dirty):
        model, batch = classifier(), toy_set().batch(np.arange(8))
        trainer = Trainer(model, toy_set(), steps=1, lr=1e-2, **QUIET)
        if dirty:
            model.loss(batch)["classification"][0].backward()
        trainer.train_step([batch], 1e-2)
        return weights(model)

    assert_same(train(False), train(True))


# ---- History and schedule ------------------------------------------------------------------------------------------

def test_the_same_seed_gives_the_same_history_and_weights_bit_for_bit():
    def train():
        model = classifier(dropout=0.2)
        trainer = Trainer(model, toy_set(), toy_set(8, seed=1), steps=6, lr=1e-2, batch_size=5, evaluate_every=2, **QUIET)
        rows = trainer.fit().rows
        return [{k: v for k, v in row.items() if k not in ("tokens_per_second", "peak_mb")} for row in rows], weights(model)

    (rows, one), (again, two) = train(), train()
    assert rows == again and len(rows) == 3
    assert_same(one, two)


def test_rows_of_the_history_and_the_table_on_disk(tmp_path):
    model, seen = classifier(), []
    trainer = Trainer(model, toy_set(), toy_set(8, seed=1), steps=7, lr=1e-2, batch_size=4, evaluate_every=3, out=tmp_path,
                      schedule="constant", **QUIET)
    step = trainer.train_step
    trainer.train_step = lambda batches, rate: seen.append((step(batches, rate), rate)) or seen[-1][0]
    history = trainer.fit()
    assert history is trainer.history and len(history) == 3 and history["step"] == [3, 6, 7]
    losses, rates = zip(*seen)
    np.testing.assert_allclose(history["loss"], [np.mean(losses[:3]), np.mean(losses[3:6]), losses[6]], rtol=1e-12)
    assert history["rate"] == [rates[2], rates[5], rates[6]]
    assert set(history.rows[0]) == {"step", "loss", "rate", "tokens_per_second", "peak_mb", "valid_loss", "valid_error"}
    assert min(history["tokens_per_second"]) > 0 and history["nothing"] == []
    with open(tmp_path / "history.csv", newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [{name: float(value) for name, value in row.items()} for row in table] == history.rows
    assert [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()] == history.rows
    assert sorted(file.name for file in tmp_path.iterdir()) == FILES


def test_a_language_models_history_has_a_perplexity():
    draw = np.random.default_rng(0)
    data = LanguageModelSet([draw.integers(0, 20, 30) for _ in range(6)], block_size=8)
    train, valid = data.split(4)
    history = Trainer(classifier().backbone, train, valid, steps=2, lr=1e-2, batch_size=4, evaluate_every=1, **QUIET).fit()
    np.testing.assert_allclose(history["valid_perplexity"], np.exp(history["valid_loss"]), rtol=1e-12)


def test_an_epoch_reads_every_row_once_in_a_new_order():
    seen = []

    class Watched(ClassificationSet):
        def batch(self, rows):
            seen.append(list(map(int, rows)))
            return super().batch(rows)

    data = toy_set(10)
    data.__class__ = Watched
    Trainer(classifier(), data, steps=6, lr=1e-3, batch_size=5, evaluate_every=6, **QUIET).fit()
    epochs = [seen[i] + seen[i + 1] for i in (0, 2, 4)]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs) and len({tuple(epoch) for epoch in epochs}) == 3


def test_a_set_smaller_than_a_batch_is_read():
    history = Trainer(classifier(), toy_set(3), steps=2, lr=1e-3, batch_size=16, **QUIET).fit()
    assert history["step"] == [1, 2]


@pytest.mark.parametrize("schedule", [*SCHEDULES, lambda step, steps: 0.25 + step / steps / 4])
def test_a_schedule_by_name_or_as_a_function_sets_the_rate_of_every_step(schedule):
    model = classifier()
    history = Trainer(model, toy_set(), steps=5, lr=0.01, schedule=schedule, evaluate_every=1, **QUIET).fit()
    factor = schedule if callable(schedule) else SCHEDULES[schedule]
    assert history["rate"] == [0.01 * factor(step, 5) for step in range(5)]


def test_the_optimizer_runs_at_the_schedules_rate_and_clips():
    class Recording(SGD):
        def step(self):
            seen.append((self.lr, np.sqrt(sum((p.grad**2).sum() for p in self.parameters()))))
            super().step()

    seen, model = [], classifier()
    Trainer(model, toy_set(), steps=3, lr=0.5, schedule=lambda step, steps: 1 / (step + 1), clip=1e-3,
            optimizer=Recording(model, 9.0), **QUIET).fit()
    np.testing.assert_allclose([rate for rate, _ in seen], [0.5, 0.25, 0.5 / 3])
    np.testing.assert_allclose([norm for _, norm in seen], 1e-3, rtol=1e-5)


# ---- What it learns, keeps and puts back ---------------------------------------------------------------------------

@pytest.mark.parametrize("method", [tune.FullConfig(), tune.LoRAConfig(r=4, lora_alpha=16)], ids=["full", "lora"])
def test_a_few_steps_solve_a_toy_task(method):
    model, data = classifier(), toy_set(64)
    tune.apply(model, method)
    before = evaluate(model, data)
    Trainer(model, data, steps=60, lr=2e-2, batch_size=16, **QUIET).fit()
    after = evaluate(model, data)
    assert before["error"] >= 0.3 and after["error"] <= 0.05 and after["loss"] < before["loss"] / 2


class Scored(ClassificationSet):
    """A validation set that scores evaluations from a list, whatever the model: models are told apart by `seen`."""

    def __init__(self, errors):
        super().__init__([[1, 2]], [0], 8)
        self.errors = iter(errors)


@pytest.fixture
def scripted(monkeypatch):
    """evaluate gives the errors of a Scored set one after the other and notes the weights that it was shown."""
    seen = []

    def scored(model, data, *_):
        seen.append(weights(model))
        return {"loss": 1.0, "error": next(data.errors)}

    monkeypatch.setattr("minitune.train.trainer.evaluate", scored)
    return seen


def test_the_best_weights_are_put_back_and_written(scripted, tmp_path):
    model = classifier()
    tune.freeze(model, "token_embedding")
    trainer = Trainer(model, toy_set(), Scored([0.5, 0.2, 0.3, 0.2]), steps=8, lr=1e-2, evaluate_every=2, out=tmp_path, **QUIET)
    history = trainer.fit()
    assert history["valid_error"] == [0.5, 0.2, 0.3, 0.2]
    assert (trainer.best.measured["error"], trainer.best.step) == (0.2, 4)      # the first of equals
    assert_same(weights(model), scripted[1])
    assert np.abs(scripted[1]["head.weight"] - scripted[3]["head.weight"]).max() > 0
    trained = {name: a for name, a in scripted[1].items() if name != "backbone.token_embedding.weight"}
    assert_same(read_tensors(tmp_path / "best.safetensors"), trained)
    assert not any(part.training for _, part in model.named_modules())


def test_without_keep_best_validation_is_watched_and_the_last_weights_stay(scripted, tmp_path):
    model = classifier()
    trainer = Trainer(model, toy_set(), Scored([0.1, 0.2]), steps=4, lr=1e-2, evaluate_every=2, keep_best=False, out=tmp_path,
                      **QUIET)
    assert trainer.fit()["valid_error"] == [0.1, 0.2] and trainer.best is None
    assert_same(weights(model), scripted[1])
    assert sorted(file.name for file in tmp_path.iterdir()) == FILES[1:]


def test_without_a_validation_set_the_last_weights_stay(tmp_path):
    model = classifier()
    trainer = Trainer(model, toy_set(), steps=2, lr=1e-2, out=tmp_path, **QUIET)
    trainer.fit()
    assert trainer.best is None and sorted(file.name for file in tmp_path.iterdir()) == FILES[1:]


@pytest.mark.parametrize("patience, min_steps, stops", [(1, 0, 6), (2, 0, 8), (None, 0, 20), (1, 12, 12), (2, 7, 8),
                                                        (1, 11, 12)])
def test_patience_stops_after_so_many_evaluations_without_a_best_but_not_before_min_steps(scripted, patience, min_steps, stops):
    errors = [0.5, 0.4, *[0.4] * 20]            # the second evaluation, at step 4, is the last to be a best
    trainer = Trainer(classifier(), toy_set(), Scored(errors), steps=20, lr=1e-3, evaluate_every=2, patience=patience,
                      min_steps=min_steps, **QUIET)
    history = trainer.fit()
    assert trainer.step == history["step"][-1] == stops and trainer.best.step == 4


def test_a_late_best_starts_patience_anew(scripted):
    trainer = Trainer(classifier(), toy_set(), Scored([0.5, 0.6, 0.4, 0.6, 0.7, 0.8]), steps=20, lr=1e-3, evaluate_every=1,
                      patience=2, **QUIET)
    trainer.fit()
    assert (trainer.step, trainer.best.step) == (5, 3)


def test_a_frozen_part_is_the_same_bytes_after_training():
    model = classifier()
    tune.apply(model, tune.FreezeConfig())
    before = {name: p.data.tobytes() for name, p in model.backbone.named_parameters()}
    Trainer(model, toy_set(), toy_set(8), steps=4, lr=1e-2, weight_decay=0.5, **QUIET).fit()
    assert {name: p.data.tobytes() for name, p in model.backbone.named_parameters()} == before


# ---- Errors and interruptions --------------------------------------------------------------------------------------

def poisoned(model):
    """The next forward pass gives NaN."""
    model.head.weight.data[0, 0] = np.nan


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_loss_that_is_no_number_names_step_and_rate_and_leaves_the_weights(accumulate):
    model = classifier()
    trainer = Trainer(model, toy_set(), steps=10, lr=0.01, schedule=lambda step, steps: 0.5, accumulate=accumulate, **QUIET)
    for _ in range(3):
        trainer.step += 1
        trainer.train_step([toy_set().batch(np.arange(4))], 0.005)
    poisoned(model)
    before, slots = weights(model), {key: slot.step for key, slot in trainer.optimizer.slots.items()}
    with pytest.raises(FloatingPointError, match=r"the loss is nan .* at step 3, rate 0\.005\. The weights .* intact"):
        trainer.fit()
    assert_same(weights(model), before)
    assert {key: slot.step for key, slot in trainer.optimizer.slots.items()} == slots


def test_after_a_loss_that_was_no_number_training_can_go_on():
    """The gradients of the failed step are NaN; were they kept, every later step would be."""
    model, batch = classifier(), toy_set().batch(np.arange(4))
    trainer = Trainer(model, toy_set(), steps=2, lr=0.01, **QUIET)
    healthy = model.head.weight.data.copy()
    poisoned(model)
    with pytest.raises(FloatingPointError):
        trainer.train_step([batch], 0.01)
    model.head.weight.data = healthy
    trainer.fit()
    assert all(np.isfinite(array).all() for array in weights(model).values())


def test_a_gradient_that_is_no_number_beside_a_finite_loss_raises_and_leaves_the_weights():
    model, batch = classifier(), toy_set().batch(np.arange(4))
    trainer = Trainer(model, toy_set(), steps=2, lr=0.01, **QUIET)
    before, loss = weights(model), model.loss

    def spoilt(batch):
        model.head.weight.grad = np.full_like(model.head.weight.data, np.nan)
        return loss(batch)

    model.loss = spoilt
    with pytest.raises(FloatingPointError, match="gradient"):
        trainer.train_step([batch], 0.01)
    assert_same(weights(model), before)


def test_an_interruption_leaves_what_was_written_whole(tmp_path):
    data = toy_set()
    batches = [data.batch(np.arange(i, i + 4)) for i in range(5)]
    model = classifier()
    trainer = Trainer(model, Listed(*batches, KeyboardInterrupt(), batches[0]), toy_set(8), steps=20, lr=1e-2, evaluate_every=2,
                      out=tmp_path, **QUIET)
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    assert trainer.step == 5 and trainer.history["step"] == [2, 4]
    assert sorted(file.name for file in tmp_path.iterdir()) == FILES
    assert len((tmp_path / "history.csv").read_text().splitlines()) == 3
    assert_same(read_tensors(tmp_path / "best.safetensors"), trainer.best.weights)
    history = trainer.fit()                     # the same trainer goes on where it was
    assert trainer.step == 20 and history["step"] == list(range(2, 21, 2))


def test_an_interruption_while_files_are_written_leaves_the_old_ones(tmp_path, monkeypatch):
    model = classifier()
    trainer = Trainer(model, toy_set(), toy_set(8), steps=1, lr=1e-2, out=tmp_path, **QUIET)
    trainer.fit()
    remove_checkpoints(tmp_path)
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}

    def half(tensors, file, metadata):
        file.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr("minitune.formats.folder.save_file", half)
    again = Trainer(model, toy_set(), toy_set(8), steps=1, lr=1e-2, out=tmp_path, **QUIET)
    with pytest.raises(KeyboardInterrupt):
        again.fit()
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_the_mean_loss_of_a_row_is_right_after_an_interruption_between_two_rows():
    data = toy_set()
    batches = [data.batch(np.arange(i, i + 4)) for i in range(4)]
    trainer = Trainer(classifier(), Listed(batches[0], KeyboardInterrupt(), *batches[1:]), steps=4, lr=1e-3, evaluate_every=4,
                      **QUIET)
    losses, step = [], trainer.train_step
    trainer.train_step = lambda given, rate: losses.append(step(given, rate)) or losses[-1]
    with pytest.raises(KeyboardInterrupt):
        trainer.fit()
    np.testing.assert_allclose(trainer.fit()["loss"], [np.mean(losses)], rtol=1e-12)


@pytest.mark.parametrize("settings", [{}, {"ema": 0.9}], ids=["best", "average"])
def test_a_second_fit_after_ctrl_c_goes_on_from_the_last_weights_not_from_the_best(settings):
    """In between the best weights are in the model, since whoever stops there wants these."""
    def train(stop_at):
        model, seen = classifier(), []
        trainer = Trainer(model, toy_set(), toy_set(8, seed=1), steps=12, lr=3e-2, batch_size=4, evaluate_every=2, **QUIET,
                          **settings)
        step = trainer.train_step

        def watched(batches, rate):
            seen.append(step(batches, rate))
            if len(seen) == stop_at:
                raise KeyboardInterrupt
            return seen[-1]

        trainer.train_step = watched
        return trainer, seen

    whole, expected = train(None)
    whole.fit()
    cut, losses = train(7)
    with pytest.raises(KeyboardInterrupt):
        cut.fit()
    kept = cut.best.weights
    assert_same({name: weights(cut.model)[name] for name in kept}, kept)
    cut.step += 1                               # the step was made; only its counting was interrupted
    cut.losses.append(losses[-1])
    if cut.average:                             # and its place in the average
        live = {name: pair[1] for name, pair in cut.left.items()}
        for name, array in live.items():
            cut.average.weights[name] += (1 - min(0.9, 8 / 17)) * (array - cut.average.weights[name])
    cut.fit()
    assert losses == expected
    assert_same(weights(cut.model), weights(whole.model), atol=1e-7)


def test_accumulation_on_a_set_smaller_than_the_large_batch_reads_the_same_rows():
    """30 rows: one batch of 32 holds 30, and so do four of 8, the last one short."""
    seen = []

    class Watched(ClassificationSet):
        def batch(self, rows):
            seen.append(sorted(map(int, rows)))
            return super().batch(rows)

    results = []
    for batch_size, accumulate in ((32, 1), (8, 4)):
        seen.clear()
        model, data = classifier(), toy_set(30)
        data.__class__ = Watched
        Trainer(model, data, steps=3, lr=1e-2, batch_size=batch_size, accumulate=accumulate, schedule="constant",
                optimizer=AdamW(model, eps=1e-4), **QUIET).fit()
        results.append(weights(model))
        assert [len(rows) for rows in seen] == ([30] * 3 if accumulate == 1 else [8, 8, 8, 6] * 3)
    assert_same(*results, atol=1e-6)            # float32 sums in another order


@pytest.mark.parametrize("valid", [None, toy_set(8, seed=1)], ids=["no validation", "validation"])
def test_a_last_step_that_ruins_the_weights_is_no_success(valid):
    with np.errstate(all="ignore"), pytest.raises(FloatingPointError, match="after step 1, in backbone|validation loss is"):
        Trainer(classifier(), toy_set(), valid, steps=1, lr=1e39, schedule="constant", optimizer=None, **QUIET).fit()


@pytest.mark.parametrize("settings, complaint", [
    ({"patience": -1}, "patience must be at least 1, got -1"), ({"evaluate_every": 0}, "evaluate_every must be at least 1"),
    ({"checkpoint_every": -5}, "checkpoint_every must be at least 1, got -5"),
    ({"steps": 0}, "steps must be at least 1, got 0"), ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
    ({"accumulate": -1}, "accumulate must be at least 1, got -1"),
    ({"schedule": "linnear"}, "schedule must be one of constant, linear, cosine, slanted_triangular, got 'linnear'"),
    ({"patience": 3}, r"patience needs a validation set, Trainer\(model, train, valid, ...\), and keep_best"),
    ({"lr": -1.0}, "lr must be at least 0, got -1.0"), ({"lr": float("nan")}, "lr must be at least 0, got nan")])
def test_settings_that_cannot_work_are_told(settings, complaint):
    with pytest.raises(ValueError, match=complaint):
        Trainer(classifier(), toy_set(), **{"steps": 1, "lr": 1e-3} | settings, **QUIET)


def test_what_would_be_ignored_is_refused():
    model = classifier()
    with pytest.raises(ValueError, match=r"weight_decay is the optimizer's own: AdamW\(model, weight_decay=...\)"):
        Trainer(model, toy_set(), steps=1, lr=1e-3, optimizer=AdamW(model), weight_decay=0.5, **QUIET)
    with pytest.raises(ValueError, match=r"fit\(resume=True\) needs out"):
        Trainer(model, toy_set(), steps=1, lr=1e-3, **QUIET).fit(resume=True)
    with pytest.raises(ValueError, match="the validation set is empty"):
        Trainer(model, toy_set(), ClassificationSet([], [], 8), steps=1, lr=1e-3, **QUIET)


def test_an_empty_training_set_is_told():
    with pytest.raises(ValueError, match="Trainer: the training set is empty"):
        Trainer(classifier(), ClassificationSet([], [], 8), steps=1, lr=1e-3, **QUIET)


def test_a_model_that_is_all_frozen_is_told_with_the_repair():
    model = classifier()
    tune.freeze(model)
    with pytest.raises(ValueError, match=r"every parameter is frozen\. Unfreeze some: tune\.unfreeze"):
        Trainer(model, toy_set(), steps=1, lr=1e-3, **QUIET)


def test_progress_goes_to_the_terminal_and_nowhere_else(capsys):
    Trainer(classifier(), toy_set(), steps=2, lr=1e-3, progress="toy").fit()
    shown = capsys.readouterr()
    assert shown.out == "" and "toy: 100%" in shown.err and "tokens/s" in shown.err
    Trainer(classifier(), toy_set(), steps=2, lr=1e-3, **QUIET).fit()
    assert capsys.readouterr() == ("", "")


def test_an_optimizer_made_before_the_adapters_is_refused():
    model = models.Classifier(models.GPT(models.GPTConfig(20, 8, 1, 2, 16)), ["no", "yes"])
    optimizer = AdamW(model)
    tune.apply(model, tune.LoRAConfig(r=2))
    dataset = ClassificationSet([[1, 2], [3, 4]], [0, 1], 8)
    with pytest.raises(ValueError, match=r"the optimizer does not hold backbone\.blocks\.0.*Make it after tune\.apply"):
        Trainer(model, dataset, steps=1, lr=1e-3, optimizer=optimizer)


@pytest.mark.parametrize("clip", [0, -1.0, float("nan")])
def test_a_clip_that_would_stop_everything_is_refused(clip):
    model = models.Classifier(models.GPT(models.GPTConfig(20, 8, 1, 2, 16)), ["no", "yes"])
    with pytest.raises(ValueError, match="clip must be above 0"):
        Trainer(model, ClassificationSet([[1, 2], [3, 4]], [0, 1], 8), steps=1, lr=1e-3, clip=clip)

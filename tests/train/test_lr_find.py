"""lr_find and sweep: no trace is left, whatever happens; the suggestion lies where the answer is known."""

import sys
from pathlib import Path

import numpy as np
import pytest

import minitune as mt
from minitune import backend, models, tune
from minitune.data import Batch, ClassificationSet, LanguageModelSet
from minitune.nn import Module, Parameter
from minitune.optim import SGD, AdamW
from minitune.train import Callback, Trainer, lr_find, sweep
from minitune.twins.cuda import emulation

sys.path.append(str(Path(__file__).parents[1] / "kernels"))
import standin_cupy  # noqa: E402                      CuPy without a GPU

QUIET = {"progress": False}


class Freezing(Callback):
    """Trains what is not the embedding, and from the third step on everything."""

    def on_step_begin(self, trainer):
        tune.freeze_to(trainer.model, 0 if trainer.step >= 3 else 1)


class Cutting:
    """A set that raises at one of its batches, or after it gives the model a weight that is not finite."""

    def __init__(self, dataset, at=None, error=None, model=None):
        self.dataset, self.at, self.error, self.model, self.read = dataset, at, error, model, 0

    def __len__(self):
        return len(self.dataset)

    def batch(self, rows):
        self.read += 1
        if self.read == self.at and self.error:
            raise self.error
        if self.read == self.at:
            next(self.model.parameters()).data[:] = np.nan
        return self.dataset.batch(rows)


def language_set(count=64, vocabulary=20, block_size=8):
    """Each token but the first is the one before it plus 1, or at one place in ten any other."""
    draw = np.random.default_rng(0)
    ids = (draw.integers(0, vocabulary, (count, 1)) + np.arange(block_size)) % vocabulary
    ids = np.where(draw.random(ids.shape) < 0.1, draw.integers(0, vocabulary, ids.shape), ids)
    return LanguageModelSet(ids.tolist(), block_size)


def gpt(dropout=0.1):
    mt.seed(0)
    return models.GPT(models.GPTConfig(20, 8, 1, 2, 16, dropout))


def awd_lstm():
    mt.seed(0)
    return models.AWDLSTM(models.AWDLSTMConfig(20, 8, 8, 12, 2))


def trainer_of(make=gpt, optimizer=AdamW, **settings):
    model = make()
    data = language_set()
    own = optimizer(model, momentum=0.9, lr=1.0) if optimizer is SGD else optimizer(model)
    settings = {"steps": 8, "lr": 1e-2, "batch_size": 5, "accumulate": 2, "evaluate_every": 2, "ema": 0.9, "optimizer": own,
                "callbacks": [Freezing()], **QUIET} | settings
    return Trainer(model, Cutting(data, model=model), data.split(10)[1], **settings)


def state(trainer):
    """All that a training is, as bytes and numbers that compare."""
    model, optimizer, best = trainer.model, trainer.optimizer, trainer.best
    return {
        "weights": {name: (id(p.data), p.data.tobytes(), p.requires_grad, None if p.grad is None else p.grad.tobytes())
                    for name, p in model.named_parameters()},
        "moments": {key: (slot.step, [m.tobytes() for m in slot.moments]) for key, slot in optimizer.slots.items()},
        "optimizer": (optimizer.lr, optimizer.clipping), "modes": [part.training for part in model.modules()],
        "random": (backend.random.seed, dict(backend.random.counters)), "order": trainer.order.tolist(),
        "trainer": (trainer.step, list(trainer.losses), list(trainer.unseen), repr(trainer.seen)),
        "history": [{name: value for name, value in row.items() if name not in ("tokens_per_second", "peak_mb")}
                    for row in trainer.history.rows],
        "average": {name: array.tobytes() for name, array in trainer.average.weights.items()},
        "best": best and (best.step, best.measured, {name: array.tobytes() for name, array in best.weights.items()})}


def without_places(state):
    """The state without what says where in memory it lies."""
    return state | {"weights": {name: rest for name, (_, *rest) in state["weights"].items()},
                    "moments": list(state["moments"].values())}


# ---- No trace ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("at", [0, 1, 5])
@pytest.mark.parametrize("make, optimizer", [(gpt, AdamW), (awd_lstm, AdamW), (gpt, SGD)])
def test_a_training_with_lr_find_in_it_is_the_one_without_bit_for_bit(make, optimizer, at):
    """In a training that stopped after step `at` best weights stand in the model, others are trained on."""
    whole = trainer_of(make, optimizer)
    if at:
        whole.steps, steps = at, whole.steps
        whole.fit()
        whole.steps = steps
    whole.fit()
    expected = without_places(state(whole))

    searched = trainer_of(make, optimizer)
    if at:
        searched.steps, steps = at, searched.steps
        searched.fit()
        searched.steps = steps
    before, read = state(searched), searched.train.read
    finding = lr_find(searched, 1e-5, 1.0, 30)
    assert state(searched) == before and searched.train.read > read + 2 * 20
    assert finding.losses[-1] != finding.losses[0]
    searched.fit()
    assert without_places(state(searched)) == expected


@pytest.mark.parametrize("at", [0, 2, 5])
@pytest.mark.parametrize("make", [gpt, awd_lstm])
def test_the_first_loss_is_that_of_the_step_that_comes_next(make, at):
    """Also where the best weights stand in the model, which is in evaluation mode, and training goes on from the last."""
    trainer = trainer_of(make, evaluate_every=1, lr=0.3)
    if at:
        trainer.steps, steps = at, trainer.steps
        trainer.fit()
        trainer.steps = steps
    assert not at or any((best != last).any() for best, last in trainer.left.values())
    finding = lr_find(trainer, 1e-5, 1e-1, 20)
    assert trainer.fit()["loss"][at] == finding.losses[0]


@pytest.mark.parametrize("make", [gpt, awd_lstm])
@pytest.mark.parametrize("error", [KeyboardInterrupt(), None, ZeroDivisionError()], ids=["Ctrl-C", "NaN", "an error"])
def test_nothing_is_left_of_a_run_that_is_cut_off_or_lost(make, error):
    """Ctrl-C, weights that become NaN, or a set that fails, in the second batch of a step in the middle of the run."""
    whole = trainer_of(make)
    whole.fit()
    expected = without_places(state(whole))

    cut = trainer_of(make)
    next(cut.model.parameters()).grad = np.ones_like(next(cut.model.parameters()).data)
    cut.model.eval()
    before = state(cut)
    cut.train.at, cut.train.error = 32, error
    if error:
        with pytest.raises(type(error)):
            lr_find(cut, 1e-5, 1.0, 30)
    else:
        assert len(lr_find(cut, 1e-5, 1.0, 30).rates) == 15        # 16 steps were begun, the last is lost
    assert state(cut) == before
    cut.fit()
    assert without_places(state(cut)) == expected


def test_the_run_trains_what_the_next_step_would_train():
    """The callback freezes the embedding for three steps: during the run too, and not after it."""
    trainer, seen = trainer_of(ema=None), []
    step = trainer.train_step
    trainer.train_step = lambda batches, rate: seen.append(
        {name for name, p in trainer.model.named_parameters() if not p.requires_grad}) or step(batches, rate)
    lr_find(trainer, 1e-5, 1e-1, 20)
    frozen = {"token_embedding.weight", "position_embedding.weight"}
    assert seen and all(names == frozen for names in seen)
    assert all(p.requires_grad for p in trainer.model.parameters()) and trainer.train_step.__name__ == "<lambda>"


@pytest.mark.skipif(emulation.compiler() is None, reason="the emulation needs g++, which is not installed")
def test_on_a_gpu_it_sees_what_it_sees_on_a_cpu_and_leaves_no_trace():
    """There no step waits for its loss unless it is looked at. Losses agree to 1e-4: sums in another order."""
    def search(device):
        model = gpt().to(device)
        trainer = Trainer(model, language_set(16), steps=5, lr=1e-2, batch_size=4, **QUIET)
        trainer.step = 3                        # the trainer itself looks every ten steps
        before = [(p.data, np.array(p.numpy())) for p in model.parameters()]
        finding = lr_find(trainer, 1e-3, 1.0, 20)
        assert all(p.data is data and (p.numpy() == numbers).all() for p, (data, numbers) in zip(model.parameters(), before))
        assert not trainer.optimizer.slots and not trainer.unseen and not trainer.losses
        return finding

    cpu = search("cpu")
    with standin_cupy.installed():
        gpu = search("cuda")
    assert (gpu.rates, gpu.suggestion) == (cpu.rates, cpu.suggestion)
    np.testing.assert_allclose(gpu.losses[:12], cpu.losses[:12], rtol=1e-4)      # later, rates magnify what rounding began


# ---- What is measured ------------------------------------------------------------------------------------------------

class Quadratic(Module):
    """loss = curvature x^2 / 2: with SGD x shrinks at a rate below 2 / curvature and grows above it."""

    def __init__(self, curvature):
        self.curvature, self.x = curvature, Parameter(np.array([3.0]))

    def loss(self, batch):
        return {"quadratic": ((self.x * self.x).sum() * (self.curvature / 2), 1, 1.0)}

    def counts(self, batch):
        return {"quadratic": 1}


class OneRow:
    def __len__(self):
        return 1

    def batch(self, rows):
        return Batch.causal([[[1, 2]]])


class Scripted(Module):
    """Has the losses that it is given, one a step."""

    def __init__(self, losses):
        self.losses, self.x = iter(losses), Parameter(np.array([1.0]))

    def loss(self, batch):
        return {"scripted": ((self.x * 0.0).sum() + next(self.losses), 1, 1.0)}

    def counts(self, batch):
        return {"scripted": 1}


def quadratic(curvature):
    model = Quadratic(curvature)
    return Trainer(model, OneRow(), steps=5, lr=1.0, optimizer=SGD(model, lr=1.0), clip=float("inf"), **QUIET)


def test_the_losses_are_those_of_successive_steps_smoothed_without_a_bias():
    """x_(i+1) = (1 - rate_i curvature) x_i; the mean's weights fall by 0.9. Rounding alone may differ: float64, 1e-9."""
    finding = lr_find(quadratic(2.0), 1e-3, 10.0, 400)
    rates = 1e-3 * 10.0 ** (4 * np.arange(400) / 399)
    x = 3.0 * np.cumprod(np.append(1.0, 1 - 2.0 * rates))[: len(finding.rates)]
    expected = smoothed(x**2)
    np.testing.assert_allclose(finding.rates, rates[: len(x)], rtol=1e-12)
    np.testing.assert_allclose(finding.losses, expected, rtol=1e-9)
    assert finding.losses[-1] > 4 * min(finding.losses[40:]) >= finding.losses[-2]


def smoothed(losses):
    weights = [0.9 ** np.arange(i, -1, -1.0) for i in range(len(losses))]
    return [(w * losses[: len(w)]).sum() / w.sum() for w in weights]


def test_it_stops_where_the_smoothed_loss_is_four_times_its_lowest_and_the_first_tenth_decides_nothing():
    """One chance loss of 0.1 at the start: losses of 3 are more than four times that, and fall to 1 at step 60."""
    losses = np.concatenate([[0.1], np.full(29, 3.0), np.linspace(3, 1, 31)[1:], 1.02 ** np.arange(140)])
    finding = lr_find(Trainer(Scripted(losses), OneRow(), steps=5, lr=1.0, **QUIET), 1e-4, 1.0, 200)
    means = np.array(smoothed(losses))
    lost = int(np.flatnonzero(means > 4 * means[20:].min())[0])
    assert 60 < lost < 199 and len(finding.rates) == lost + 1
    np.testing.assert_allclose(finding.losses, means[: lost + 1], rtol=1e-12)
    level = (means[20] + means[20:].min()) / 2
    at = finding.rates.index(finding.suggestion)
    assert 30 < at < 70 and means[at - 1] > level >= means[at] and finding.note == ""


@pytest.mark.parametrize("curvature", [0.02, 1.0, 300.0])
def test_the_suggestion_for_a_quadratic_lies_where_mathematics_puts_it(curvature):
    """loss = e^(-2 curvature sum of rates) about: half of it is gone where that sum is log(2) / (2 curvature).

    Rates that grow by q have the sum rate / (1 - 1 / q). Smoothing shows a loss later, by 9 steps at most, the mean age of
    what it averages: 0.9 / (1 - 0.9). All is far below the critical rate 2 / curvature, soon after which the run is lost.
    """
    critical, steps = 2 / curvature, 120
    finding = lr_find(quadratic(curvature), 1e-5 * critical, 1e2 * critical, steps)
    q = 1e7 ** (1 / (steps - 1))
    half = np.log(2) / (2 * curvature) * (1 - 1 / q)
    assert half <= finding.suggestion <= half * q**9 < critical
    assert critical < finding.rates[-1] < 10 * critical
    assert finding.note == "" and f"rate {finding.suggestion:.2g}" in str(finding)


def test_a_group_of_a_lower_rate_takes_a_higher_one():
    """All rates are relative: a tenth in the group is ten times in the suggestion, to rounding in the rates."""
    trainer = quadratic(1.0)
    trainer.optimizer.groups[0].rate = 0.1
    one, other = lr_find(trainer, 1e-4, 1e3, 80), lr_find(quadratic(1.0), 1e-5, 1e2, 80)
    np.testing.assert_allclose(one.suggestion, 10 * other.suggestion, rtol=1e-9)
    np.testing.assert_allclose(one.losses, other.losses, rtol=1e-9)


def test_what_speaks_against_a_suggestion_is_told():
    assert lr_find(quadratic(1.0), 1e-4, 0.5, 40).note == "It fell up to the highest rate: end higher"
    assert lr_find(quadratic(1.0), 0.2, 1.5, 40).note.startswith("It fell from the first rates on: begin lower. ")
    with pytest.raises(ValueError, match=r"the loss fell at no rate, it was 4.5, 5.45, 7.17 ... from rate 2.1 on. Begin"):
        lr_find(quadratic(1.0), 2.1, 5.0, 40)
    noisy, clear = (Trainer(classifier(), labelled(random=random), steps=9, lr=1.0, batch_size=8, **QUIET)
                    for random in (True, False))
    assert "read more rows a step" in lr_find(noisy, 1e-5, 1e-3, 60).note and not lr_find(clear).note


def labelled(count=160, seed=0, random=False):
    """Texts whose label is whether the token 7 stands in them, or a label that nothing foretells."""
    draw = np.random.default_rng(seed)
    documents = [draw.integers(8, 20, draw.integers(2, 8)).tolist() for _ in range(count)]
    labels = draw.integers(0, 2, count)
    for document, label in zip(documents, labels):
        if label and not random:
            document[draw.integers(len(document))] = 7
    return ClassificationSet(documents, labels, block_size=8)


def classifier():
    mt.seed(0)
    return models.Classifier(models.GPT(models.GPTConfig(20, 8, 1, 2, 16)), ["without", "with"], "mean")


@pytest.mark.parametrize("arguments", [(1.0, 1e-3), (1e-3, 1e-3), (0.0, 1.0), (-1.0, 1.0), (1e-3, float("inf")),
                                       (float("nan"), 1.0), (1e-3, 1.0, 19)])
def test_rates_and_steps_that_make_no_run_are_told(arguments):
    with pytest.raises(ValueError, match="lr_find: expected 0 < lowest < highest and at least 20 steps, got lowest"):
        lr_find(quadratic(1.0), *arguments)


def test_a_training_that_has_ended_is_told():
    ended = trainer_of(steps=2)
    ended.fit()
    stalled = trainer_of(steps=50, lr=0.0, evaluate_every=1, patience=1, ema=None)
    stalled.fit()
    for trainer, step in (ended, 2), (stalled, 2):
        with pytest.raises(ValueError, match=f"lr_find: the training has ended, at step {step}. Give a trainer that has"):
            lr_find(trainer)


# ---- sweep ---------------------------------------------------------------------------------------------------------

def test_a_sweep_finds_the_best_rate_of_a_gpt_in_the_suggestions_neighbourhood():
    """Of rates from 1/27 of the suggestion to 27 times it the best is itself or one beside it, and both ends are far worse."""
    train, valid = language_set(160).split(32)

    def make(rate):
        model = gpt()
        return Trainer(model, train, valid, steps=40, lr=rate, batch_size=16, evaluate_every=10, **QUIET)

    finding = lr_find(make(1.0), 1e-5, 10.0)
    found = sweep(make, finding.around(3))
    assert found.best in finding.around(1) and not found.at_edge
    losses = [row["loss"] for row in found.rows]
    assert 1.5 * min(losses) < min(losses[0], losses[-1]) and losses[3] < 1.1 * min(losses)
    assert str(found).count("best") == 1 and "edge" not in str(found)


def test_a_sweep_differs_by_the_rate_alone_and_leaves_random_numbers_where_they_were():
    mt.seed(5)
    mt.random.uniform("init", 10)
    counters, losses = dict(mt.random.counters), []

    def make(rate):
        model = models.Classifier(models.GPT(models.GPTConfig(20, 8, 1, 2, 16, 0.2)), ["without", "with"], "mean")
        losses.append(model.loss(labelled().batch(np.arange(8)))["classification"][0].item())
        return Trainer(model, labelled(), labelled(40, 1), steps=4, lr=rate, **QUIET)

    one = sweep(make, [1e-2, 1e-4])
    assert len(set(losses)) == 1 and (mt.random.seed, dict(mt.random.counters)) == (5, counters)
    assert sweep(make, [1e-3, 1e-2, 1e-4]).rows[::2] == one.rows
    assert [row["rate"] for row in one.rows] == [1e-4, 1e-2] and one.rows[0].keys() == {"rate", "loss", "error"}
    assert one.at_edge and f"at the edge: try {'lower' if one.best == 1e-4 else 'higher'} rates" in str(one)


@pytest.mark.parametrize("keep_best", [True, False])
def test_a_rate_that_diverges_loses(keep_best):
    def make(rate):
        trainer = quadratic(1.0)
        trainer.valid, trainer.steps, trainer.lr, trainer.keep_best = OneRow(), 60, rate, keep_best
        trainer.schedule, trainer.evaluate_every = (lambda step, steps: 1.0), 30
        trainer.model.measure = lambda batch: {"loss": (trainer.model.x.data[0] ** 2, 1)}
        return trainer

    found = sweep(make, [0.1, 0.5, 1e9])
    assert [row["loss"] for row in found.rows] == [pytest.approx(9 * 0.9**120), pytest.approx(9 * 0.5**120), np.inf]
    assert found.best == 0.5 and not found.at_edge and "inf" in str(found)
    with pytest.raises(FloatingPointError, match=r"sweep: training diverged at every rate, also at 1e\+08. Try lower"):
        sweep(make, [1e8, 1e9])


def test_what_makes_no_sweep_is_told():
    base = classifier()
    with pytest.raises(ValueError, match=r"at least two different rates above 0, got \[0.1\]"):
        sweep(lambda rate: quadratic(1.0), [0.1, 0.1])
    with pytest.raises(ValueError, match="above 0, got"):
        sweep(lambda rate: quadratic(1.0), [0.0, 0.1])
    with pytest.raises(ValueError, match="must give each Trainer a validation set"):
        sweep(lambda rate: quadratic(1.0), [0.1, 0.2])
    with pytest.raises(ValueError, match="weights that were trained at another rate. Make the model anew"):
        sweep(lambda rate: Trainer(models.Classifier(base, ["a", "b"]), labelled(), labelled(), steps=2, lr=rate, **QUIET),
              [0.1, 0.2])

"""Callbacks, the weight average, TensorBoard's log."""

import numpy as np
import pytest

import minitune as mt
from minitune import models
from minitune.data import ClassificationSet
from minitune.formats.folder import read_tensors
from minitune.train import Callback, TensorBoard, Trainer, WeightAverage, evaluate

EIGHT = ClassificationSet([[1, 2, 3], [4, 5]] * 4, [0, 1] * 4, 8)


def make(**settings):
    model = models.Classifier(models.GPT(models.GPTConfig(20, 8, 1, 2, 16)), ["no", "yes"])
    return Trainer(model, EIGHT, EIGHT, **{"steps": 6, "lr": 1e-2, "batch_size": 4, "evaluate_every": 2, "progress": False}
                   | settings)


class Recorder(Callback):
    def __init__(self):
        self.events = []

    def on_step_begin(self, trainer):
        self.events.append(f"step {trainer.step}")

    def on_evaluate(self, trainer, row):
        row["own"] = np.float32(7.0)            # a number of NumPy's is as good
        self.events.append(f"evaluate {row['step']}")

    def on_train_end(self, trainer):
        self.events.append("end")


def test_three_events_in_order_and_a_column_of_ones_own(tmp_path):
    recorder = Recorder()
    history = make(callbacks=[recorder], out=tmp_path).fit()
    assert recorder.events == ["step 0", "step 1", "evaluate 2", "step 2", "step 3", "evaluate 4", "step 4", "step 5",
                               "evaluate 6", "end"]
    assert history["own"] == [7.0] * 3


def test_the_end_is_told_after_an_error_as_well():
    class Failing(Recorder):
        def on_evaluate(self, trainer, row):
            raise OSError("no room")

    failing = Failing()
    with pytest.raises(OSError, match="no room"):
        make(callbacks=[failing]).fit()
    assert failing.events[-1] == "end"


def test_the_average_follows_its_formula():
    model = make().model
    average, expected, weight = WeightAverage(0.5), None, model.head.weight
    for step in range(1, 9):
        weight.data = np.random.default_rng(step).normal(size=weight.shape).astype(np.float32)
        average.update(model, step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = weight.data if expected is None else decay * expected + (1 - decay) * weight.data
    np.testing.assert_allclose(average.weights["head.weight"], expected, rtol=1e-5, atol=1e-6)   # float32, eight sums


def test_the_average_is_what_is_evaluated_kept_written_and_left_in_the_model(tmp_path):
    trainer = make(ema=0.9, out=tmp_path)
    trainer.fit()
    np.testing.assert_allclose(evaluate(trainer.model, EIGHT)["loss"], trainer.best.measured["loss"], rtol=1e-6)
    stored = read_tensors(tmp_path / "best.safetensors")
    assert all(np.array_equal(stored[name], array) for name, array in trainer.best.weights.items())
    alone = make(ema=0.9)
    alone.valid = None
    alone.fit()
    assert alone.model.head.weight.data.tolist() == alone.average.weights["head.weight"].tolist()


def test_the_same_losses_with_and_without_an_average():
    losses = []
    for ema in (None, 0.9):
        mt.seed(3)
        losses.append(make(ema=ema).fit()["loss"])
    assert losses[0] == losses[1]


def test_the_average_of_what_is_frozen_later_comes_to_its_weights():
    model = make().model
    average = WeightAverage(0.5)
    average.update(model, 1)
    model.head.weight.data = model.head.weight.data + 1
    model.head.weight.requires_grad = False
    for step in range(2, 40):
        average.update(model, step)
    np.testing.assert_allclose(average.weights["head.weight"], model.head.weight.data, rtol=1e-5)


@pytest.mark.parametrize("decay", [0, 1, 1.5, -0.1])
def test_a_decay_that_averages_nothing_is_refused(decay):
    with pytest.raises(ValueError, match="ema must be between 0 and 1"):
        make(ema=decay)


def test_outside_applied_the_weights_are_back_also_after_an_error():
    trainer = make()
    average = WeightAverage(0.9)
    average.update(trainer.model, 1)
    trainer.model.head.weight.data = trainer.model.head.weight.data + 1
    before = trainer.model.head.weight.data
    with pytest.raises(RuntimeError), average.applied(trainer.model):
        assert trainer.model.head.weight.data is average.weights["head.weight"]
        raise RuntimeError
    assert trainer.model.head.weight.data is before


def test_tensorboard_gets_every_column_at_its_step(tmp_path):
    pytest.importorskip("tensorboardX", reason='needs tensorboardX: pip install "minitune[test]"')
    history = make(callbacks=[TensorBoard(tmp_path)]).fit()
    (log,) = tmp_path.iterdir()
    content = log.read_bytes()
    assert all(name.encode() in content for name in history.rows[0] if name != "step")


def test_without_tensorboardx_the_error_says_what_to_install(monkeypatch, tmp_path):
    import sys
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    with pytest.raises(ImportError, match=r'pip install "minitune\[tensorboard\]"'):
        TensorBoard(tmp_path)

"""The report's column of rates: what each part moves by, at the rate that the optimizer has now."""

import pytest

from minitune import models, nn, tune
from minitune.data import ClassificationSet
from minitune.optim import SGD, AdamW, Group, slanted_triangular
from minitune.train import Callback, Trainer, Unfreeze

EIGHT = ClassificationSet([[1, 2, 3]] * 8, [0, 1] * 4, 8)


def classifier(n_layer=2):
    return models.Classifier(models.GPT(models.GPTConfig(20, 8, n_layer, 2, 16)), ["no", "yes"])


def test_discriminative_rates_and_what_is_frozen_are_seen():
    model = classifier()
    optimizer = AdamW(tune.discriminative(model), lr=1e-3)
    tune.gradual(model, 10).apply(model, 15)
    report = tune.report(model, optimizer)
    assert report.rates == {"embeddings": [], "blocks.0": [], "blocks.1": [1e-3 / 2.6], "head": [1e-3]}
    assert str(report).splitlines() == [
        "part            parameters       trainable    share  rate",
        "embeddings             448               0    0.00%",
        "blocks.0             3,280               0    0.00%",
        "blocks.1             3,312           3,312  100.00%  3.85e-04",
        "head                    32              32  100.00%  1.00e-03",
        "all                  7,072           3,344   47.29%"]
    assert tune.report(model).rows == report.rows and not tune.report(model).rates


def test_a_part_with_several_rates_shows_their_range():
    layer = nn.Linear(2, 2)

    class Model(nn.Module):
        def __init__(self):
            self.layer, self.norm = layer, nn.LayerNorm(2)

    model = Model()
    optimizer = SGD([Group([layer.weight], 0.5), Group([layer.bias], 0.1), Group(list(model.norm.parameters()))], lr=0.1)
    _, first, second, _ = str(tune.report(model, optimizer)).splitlines()
    assert first.endswith("100.00%  1.00e-02 .. 5.00e-02") and second.endswith("100.00%  1.00e-01")
    layer.weight.requires_grad = False
    assert tune.report(model, optimizer).rates["layer"] == [pytest.approx(0.01)]


def test_what_trains_and_is_not_held_has_the_rate_0():
    model = classifier()
    rates = tune.report(model, SGD(model.head, lr=0.1)).rates
    assert rates["head"] == [0.1] and rates["blocks.0"] == [0.0]


def test_in_the_middle_of_a_training_the_report_is_of_the_step_just_done():
    model, seen = classifier(), {}

    class Look(Callback):
        def on_evaluate(self, trainer, row):
            seen[trainer.step] = tune.report(trainer.model, trainer.optimizer).rates

    schedule = tune.gradual(model, 5)
    Trainer(model, EIGHT, steps=20, lr=0.01, optimizer=AdamW(tune.discriminative(model)), schedule="slanted_triangular",
            callbacks=[Unfreeze(schedule), Look()], evaluate_every=1, progress=False).fit()
    planned = tune.rates_by_step(model, AdamW(tune.discriminative(model)), 20, 0.01, "slanted_triangular", schedule)
    assert [seen[step + 1] for step in range(20)] == [
        {name: [pytest.approx(rate)] if rate else [] for name, rate in row.items() if name != "step"} for row in planned]
    assert seen[3] == {"embeddings": [], "blocks.0": [], "blocks.1": [], "head": [0.01 * slanted_triangular(2, 20)]}

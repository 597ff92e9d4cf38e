"""Discriminative rates: eta^(l-1) = eta^l / 2.6 for every layer group of GPT and AWD-LSTM, with a head and without."""

from fractions import Fraction

import numpy as np
import pytest

from minitune import models, nn, tune
from minitune.data import Batch
from minitune.optim import SGD, AdamW, slanted_triangular

ROWS = [[3, 1, 4, 1, 5, 9], [2, 6, 5]]


def gpt():
    return models.GPT(models.GPTConfig(vocab_size=20, block_size=8, n_layer=3, n_head=2, n_embd=16))


def awd_lstm():
    return models.AWDLSTM(models.AWDLSTMConfig(20, 8, n_embd=6, n_hidden=7, n_layer=3))


def classifier(backbone):
    return models.Classifier(backbone, ["no", "yes"])


MODELS = {"gpt": gpt, "awd_lstm": awd_lstm, "gpt_head": lambda: classifier(gpt()), "awd_head": lambda: classifier(awd_lstm())}
every_model = pytest.mark.parametrize("make", MODELS.values(), ids=MODELS)


class Tied(nn.Module):
    """A matrix that two layer groups share."""

    def __init__(self):
        self.low, self.high = nn.Linear(3, 3), nn.Linear(3, 3)
        self.high.weight = self.low.weight

    def layer_groups(self):
        return [("low", [self.low]), ("high", [self.high])]


def rate_of(groups, parameter):
    (rate,) = [group.rate for group in groups if any(p is parameter for p in group.parameters)]
    return rate


@every_model
@pytest.mark.parametrize("factor", [2.6, 1.3, 1.0])
def test_each_layer_group_has_the_rate_of_the_one_above_divided_by_the_factor(make, factor):
    model = make()
    groups = tune.discriminative(model, factor)
    layers = model.layer_groups()
    for i, (_, modules) in enumerate(layers):
        exact = 1 / Fraction(factor) ** (len(layers) - 1 - i)
        for p in (p for module in modules for p in module.parameters()):
            assert abs(Fraction(rate_of(groups, p)) / exact - 1) < Fraction(1, 2**50)       # a few roundings of float64
    assert rate_of(groups, next(layers[-1][1][-1].parameters())) == 1.0


@every_model
def test_every_parameter_is_held_once_frozen_or_not_and_decays_as_in_any_optimizer(make):
    model = make()
    tune.freeze_to(model, -1)
    groups = tune.discriminative(model, weight_decay=0.3)
    held = [id(p) for group in groups for p in group.parameters]
    assert sorted(held) == sorted(id(p) for p in model.parameters())
    assert {id(p): group.weight_decay for group in groups for p in group.parameters} == {
        id(p): 0.3 if p.decays else 0.0 for p in model.parameters()}
    assert [group.rate for group in groups] == sorted(group.rate for group in groups)       # from the input to the output
    AdamW(groups)


@every_model
def test_a_step_moves_each_layer_group_by_its_own_rate(make):
    model = make().eval()
    batch = Batch.causal([[row] for row in ROWS], [1, 0] if isinstance(model, models.Classifier) else None)
    terms = model.loss(batch).values()
    sum((loss for loss, _, _ in terms), start=0.0).backward()
    before = {id(p): (p.data.copy(), p.grad.copy()) for p in model.parameters()}
    SGD(tune.discriminative(model, weight_decay=0.0), lr=0.5).step()
    layers = model.layer_groups()
    for depth, (_, modules) in enumerate(reversed(layers)):
        for p in (p for module in modules for p in module.parameters()):
            data, grad = before[id(p)]
            assert grad.any()
            # float32: the product and the difference are rounded once each
            np.testing.assert_allclose(p.data, data - 0.5 / 2.6**depth * grad, rtol=1e-6, atol=1e-7)


def test_a_shared_parameter_has_the_rate_of_the_first_group_that_holds_it():
    model = Tied()
    groups = tune.discriminative(model)
    assert rate_of(groups, model.low.weight) == rate_of(groups, model.low.bias) == 1 / 2.6
    assert rate_of(groups, model.high.bias) == 1.0 and sum(len(group.parameters) for group in groups) == 3


@pytest.mark.parametrize("factor", [0.5, 0, -2.6, float("nan")])
def test_a_factor_that_lets_lower_layers_learn_faster_is_refused(factor):
    with pytest.raises(ValueError, match="discriminative: factor must be at least 1, got .*inverse"):
        tune.discriminative(gpt(), factor)


def test_a_parameter_in_no_layer_group_is_told_before_it_stays_behind():
    model = Tied()
    model.spare = nn.Linear(2, 2)
    with pytest.raises(ValueError, match=r"no layer group of Tied holds spare\.weight, spare\.bias"):
        tune.discriminative(model)


# ---- The rates of a training to come -------------------------------------------------------------------------------

@every_model
def test_rates_by_step_are_rate_times_factor_times_the_groups_rate_and_0_where_frozen(make):
    model = make()
    names = [name for name, _ in model.layer_groups()]
    schedule = tune.gradual(model, 10)
    rows = tune.rates_by_step(model, AdamW(tune.discriminative(model)), 100, 0.02, "slanted_triangular", schedule)
    assert [row["step"] for row in rows] == list(range(100)) and list(rows[0]) == ["step", *names]
    for step in (0, 9, 10, 25, 99):
        expected = {name: 0.02 * slanted_triangular(step, 100) / 2.6 ** (len(names) - 1 - i) if name in schedule.at(step) else 0
                    for i, name in enumerate(names)}
        assert {name: rows[step][name] for name in names} == pytest.approx(expected)
    assert all(p.requires_grad for p in model.parameters())            # looking at a plan changes nothing


def test_rates_by_step_without_a_schedule_of_unfreezing_say_what_is_frozen_now():
    model = classifier(gpt())
    tune.freeze_to(model, -2)
    rows = tune.rates_by_step(model, AdamW(model), 2, 1.0, lambda step, steps: (step + 1) / steps)
    assert rows == [{"step": i, "embeddings": 0.0, "blocks.0": 0.0, "blocks.1": 0.0, "blocks.2": rate, "head": rate}
                    for i, rate in enumerate((0.5, 1.0))]


def test_rates_by_step_refuse_a_schedule_of_another_model():
    with pytest.raises(ValueError, match="'head' is no layer group of GPT"):
        tune.rates_by_step(gpt(), AdamW(gpt()), 5, 1.0, unfreezing=tune.last_only(classifier(gpt())))

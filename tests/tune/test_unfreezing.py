"""Unfreezing schedules: data that says which layer groups train when, and `requires_grad` that follows."""

import json

import pytest

from minitune import models, nn, tune
from minitune.tune import Unfreezing


def gpt():
    return models.GPT(models.GPTConfig(vocab_size=20, block_size=8, n_layer=2, n_head=2, n_embd=16))


def awd_lstm():
    return models.AWDLSTM(models.AWDLSTMConfig(20, 8, n_embd=6, n_hidden=7, n_layer=2))


def classifier(backbone):
    return models.Classifier(backbone, ["no", "yes"])


GROUPS = {"gpt": ("embeddings", "blocks.0", "blocks.1"), "awd_lstm": ("embeddings", "layers.0", "layers.1")}
GROUPS |= {f"{name}_head": (*groups, "head") for name, groups in GROUPS.items()}
MODELS = {"gpt": gpt, "awd_lstm": awd_lstm, "gpt_head": lambda: classifier(gpt()),
          "awd_lstm_head": lambda: classifier(awd_lstm())}
every_model = pytest.mark.parametrize("name", MODELS)


def trained(model):
    return {name for name, p in model.named_parameters() if p.requires_grad}


@every_model
def test_gradual_begins_with_the_last_group_and_adds_the_next_lower_one(name):
    model, names = MODELS[name](), GROUPS[name]
    assert tune.gradual(model, 100).stages == tuple((100 * i, names[len(names) - 1 - i:]) for i in range(len(names)))


@every_model
def test_chain_thaw_trains_the_last_group_then_each_other_alone_then_all(name):
    model, names = MODELS[name](), GROUPS[name]
    assert tune.chain_thaw(model, 5).stages == (
        (0, names[-1:]), *((5 * i, (group,)) for i, group in enumerate(names[:-1], 1)), (5 * len(names), names))


@every_model
def test_last_only_and_all_at_once_have_one_stage(name):
    model, names = MODELS[name](), GROUPS[name]
    assert tune.last_only(model).stages == ((0, names[-1:]),) and tune.all_at_once(model).stages == ((0, names),)


@every_model
@pytest.mark.parametrize("maker", [tune.gradual, tune.chain_thaw])
def test_apply_trains_the_groups_of_the_step_and_nothing_else(name, maker):
    model = MODELS[name]()
    schedule, layers = maker(model, 3), dict(model.layer_groups())
    for step in (*range(20), 4, 0):             # also backwards: it does not depend on what was before
        schedule.apply(model, step)
        wanted = {id(p) for group in schedule.at(step) for module in layers[group] for p in module.parameters()}
        assert {id(p) for p in model.parameters() if p.requires_grad} == wanted, step


def test_at_is_the_stage_that_began_last():
    schedule = Unfreezing(((0, ("c",)), (10, ("b", "c")), (25, ("a",))))
    assert [schedule.at(step) for step in (0, 9, 10, 24, 25, 10**6)] == [("c",), ("c",), ("b", "c"), ("b", "c"), ("a",), ("a",)]


def test_gradual_says_what_freeze_to_does():
    model, other = classifier(gpt()), classifier(gpt())
    schedule = tune.gradual(model, 1)
    for step in range(4):
        schedule.apply(model, step)
        assert schedule.at(step) == tuple(tune.freeze_to(other, -1 - step)) and trained(model) == trained(other)


def test_a_parameter_shared_by_two_groups_trains_if_one_of_them_does():
    class Tied(nn.Module):
        def __init__(self):
            self.low, self.high = nn.Linear(3, 3), nn.Linear(3, 3)
            self.high.weight = self.low.weight

        def layer_groups(self):
            return [("low", [self.low]), ("high", [self.high])]

    model = Tied()
    schedule = tune.chain_thaw(model, 1)
    schedule.apply(model, 0)
    assert trained(model) == {"low.weight", "high.bias"}
    schedule.apply(model, 1)
    assert trained(model) == {"low.weight", "low.bias"}


def test_printed_it_is_a_table_of_steps_and_groups():
    assert str(tune.gradual(classifier(gpt()), 1000)).splitlines() == [
        "from step  trains",
        "        0  head",
        "    1,000  blocks.1, head",
        "    2,000  blocks.0, blocks.1, head",
        "    3,000  embeddings, blocks.0, blocks.1, head"]


def test_it_is_data_that_comes_back_from_json_the_same():
    schedule = tune.chain_thaw(classifier(awd_lstm()), 7)
    again = Unfreezing(json.loads(json.dumps(schedule.stages)))
    assert again == schedule and repr(again) == repr(schedule) and hash(again) == hash(schedule)


@pytest.mark.parametrize("stages", [(), ((5, ("head",)),), ((0, ("a",)), (0, ("b",))), ((0, ("a",)), (9, ("b",)), (3, ("c",)))])
def test_stages_that_do_not_rise_from_step_0_are_refused(stages):
    with pytest.raises(ValueError, match=r"stages must begin with step 0 and their steps must rise, got \["):
        Unfreezing(stages)


@pytest.mark.parametrize("names", ["head", (), []])
def test_a_stage_without_names_is_refused(names):
    with pytest.raises(ValueError, match=r"expected the names of layer groups from step 4 on, such as \('head',\), got "):
        Unfreezing(((0, ("head",)), (4, names)))


def test_a_name_that_the_model_lacks_is_told_at_the_first_step_and_changes_nothing():
    model = classifier(gpt())
    tune.freeze_to(model, 1)
    before = trained(model)
    with pytest.raises(ValueError, match="'layers.1' is no layer group of Classifier; .* embeddings, blocks.0, blocks.1, h"):
        tune.gradual(classifier(awd_lstm()), 100).apply(model, 0)
    assert trained(model) == before


@pytest.mark.parametrize("maker", [tune.gradual, tune.chain_thaw])
def test_stages_of_no_step_are_refused(maker):
    with pytest.raises(ValueError, match=f"{maker.__name__}: every must be at least 1 step, got 0"):
        maker(gpt(), 0)

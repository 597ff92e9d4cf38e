"""audit: what was promised to train does train, and nothing else."""

import numpy as np
import pytest

from minitune import Tensor, models, nn, tune
from minitune.data import ClassificationSet
from minitune.optim import SGD, AdamW
from minitune.train import Trainer, Unfreeze

EIGHT = ClassificationSet([[1, 2, 3]] * 8, [0, 1] * 4, 8)


def classifier():
    return models.Classifier(models.GPT(models.GPTConfig(20, 8, 2, 2, 16)), ["no", "yes"])


def train(model, steps=2):
    trainer = Trainer(model, EIGHT, steps=steps, lr=1e-2, progress=False)
    watch = tune.audit(model, trainer.optimizer)
    trainer.fit()
    return watch.check()


@pytest.mark.parametrize("method, moving", [(tune.FullConfig(), 37), (tune.LoRAConfig(r=2), 25), (tune.FreezeConfig(), 1)],
                         ids=["full", "lora", "frozen"])
def test_what_trains_moves_and_nothing_else(method, moving):
    """LoRA: A has a gradient of zeros in the first step, and moves in the second."""
    model = classifier()
    tune.apply(model, method)
    watch = train(model)
    states = {name: state for name, _, state in watch.rows}
    assert sum(state == "trains, received gradient, moved" for state in states.values()) == moving
    assert set(states.values()) <= {"trains, received gradient, moved", "frozen, did not move"}
    assert len(states) == len(list(model.parameters())) and f"{moving:10,}  " in str(watch)


class Unused(nn.Module):
    """A model with a layer that its loss does not depend on."""

    def __init__(self):
        self.used, self.spare = nn.Linear(2, 1), nn.Linear(2, 1)

    def loss(self, batch):
        return {"mean": (self.used(Tensor(np.ones((1, 2), np.float32))).sum(), 1, 1.0)}

    def counts(self, batch):
        return {"mean": 1}


def test_a_layer_that_trains_and_is_not_reached_stops_the_training_after_two_steps():
    trainer = Trainer(Unused(), EIGHT, steps=50, lr=1e-2, progress=False)
    with pytest.raises(RuntimeError, match=r"audit: spare\.weight, spare\.bias receives no gradient.*Freeze it"):
        trainer.fit()
    assert trainer.step == 2
    model = Unused()
    tune.freeze(model, "spare")
    assert len(Trainer(model, EIGHT, steps=3, lr=1e-2, progress=False).fit()) == 3


class TwoGroups(Unused):
    def layer_groups(self):
        return [("spare", [self.spare]), ("used", [self.used])]


def test_each_stage_of_an_unfreezing_schedule_is_audited_when_it_begins():
    """What is unfrozen at step 6 and is not reached stops the training two steps later."""
    model = TwoGroups()
    trainer = Trainer(model, EIGHT, steps=50, lr=1e-2, callbacks=[Unfreeze(tune.gradual(model, 6))], progress=False)
    with pytest.raises(RuntimeError, match=r"audit: spare\.weight, spare\.bias receives no gradient"):
        trainer.fit()
    assert trainer.step == 8


def test_a_schedule_that_unfreezes_what_the_optimizer_does_not_hold_is_refused_at_that_step():
    model = classifier()
    tune.freeze_to(model, -1)
    trainer = Trainer(model, EIGHT, steps=50, lr=1e-2, optimizer=SGD(model.head, lr=0.1), progress=False,
                      callbacks=[Unfreeze(tune.gradual(model, 4))])
    with pytest.raises(ValueError, match=r"does not hold backbone\.blocks\.1"):
        trainer.fit()
    assert trainer.step == 4


def test_a_rate_that_begins_at_0_only_puts_the_audit_off():
    trainer = Trainer(Unused(), EIGHT, steps=50, lr=1e-2, schedule=lambda step, steps: float(step > 3), progress=False)
    with pytest.raises(RuntimeError, match="spare.* receives no gradient"):
        trainer.fit()
    assert trainer.step == 5


def test_a_frozen_weight_that_something_else_moves_is_told():
    model = classifier()
    tune.apply(model, tune.FreezeConfig())
    optimizer = AdamW(model)
    watch = tune.audit(model, optimizer)
    model.loss(EIGHT.batch(np.arange(8)))["classification"][0].backward()
    optimizer.step()
    model.backbone.norm.weight.data[0] += 1
    with pytest.raises(RuntimeError, match=r"backbone\.norm\.weight is frozen and moved"):
        watch.check()


def test_an_optimizer_that_does_not_hold_what_trains_is_refused_at_once():
    model = classifier()
    with pytest.raises(ValueError, match=r"does not hold backbone\.token_embedding\.weight"):
        tune.audit(model, SGD(model.head, lr=0.1))


def test_a_rate_of_nothing_is_told():
    model = classifier()
    optimizer = SGD(model, lr=0.0)
    watch = tune.audit(model, optimizer)
    for _ in range(2):
        model.loss(EIGHT.batch(np.arange(8)))["classification"][0].backward()
        optimizer.step()
    with pytest.raises(RuntimeError, match="moved no parameter at all. Is the learning rate 0"):
        watch.check()

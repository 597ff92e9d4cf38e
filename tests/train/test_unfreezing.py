"""Under an unfreezing schedule moments survive, a resumed training is the same bit for bit, and another schedule is refused."""

import re

import numpy as np
import pytest

import minitune as mt
from minitune import models, tune
from minitune.data import ClassificationSet, LanguageModelSet
from minitune.formats.folder import read_state, write_state
from minitune.optim import SGD, AdamW
from minitune.train import Callback, Trainer, Unfreeze
from minitune.train.checkpoint import checkpoints

MAKERS = {"gradual": lambda model: tune.gradual(model, 3), "chain-thaw": lambda model: tune.chain_thaw(model, 2),
          "last": tune.last_only}
every_model = pytest.mark.parametrize("kind, task", [(kind, task) for kind in ("gpt", "awd_lstm") for task in ("lm", "head")])


class At(Callback):
    """Stops a training before a step, as Ctrl-C does."""

    def __init__(self, step):
        self.step = step

    def on_step_begin(self, trainer):
        if trainer.step == self.step:
            raise KeyboardInterrupt


class Watch(Callback):
    """{name: (steps, moments, weights)} of every parameter, as each step finds them."""

    def __init__(self):
        self.seen = []

    def on_step_begin(self, trainer):
        slots = trainer.optimizer.slots
        self.seen.append({name: (slots[id(p)].step if id(p) in slots else 0,
                                 [m.tobytes() for m in slots[id(p)].moments] if id(p) in slots else [], p.data.tobytes())
                          for name, p in trainer.model.named_parameters()})


def sets(task):
    draw = np.random.default_rng(0)
    documents = [draw.integers(1, 20, 8).tolist() for _ in range(30)]
    if task == "lm":
        return LanguageModelSet(documents, 8).split(6)
    labels = [sum(document) % 2 for document in documents]
    return ClassificationSet(documents[:24], labels[:24], 8), ClassificationSet(documents[24:], labels[24:], 8)


def make(kind, task, maker="gradual", out=None, optimizer=AdamW, callbacks=(), **settings):
    mt.seed(0)
    model = (models.GPT(models.GPTConfig(20, 8, 2, 2, 16, dropout=0.1)) if kind == "gpt"
             else models.AWDLSTM(models.AWDLSTMConfig(20, 8, n_embd=6, n_hidden=7, n_layer=2)))
    model = model if task == "lm" else models.Classifier(model, ["even", "odd"])
    unfreezing = [Unfreeze(MAKERS[maker](model))] if maker else []
    held = optimizer(tune.discriminative(model), lr=0.0, **{"momentum": 0.9} if optimizer is SGD else {})
    return Trainer(model, *sets(task), steps=12, lr=1e-2, batch_size=4, optimizer=held, schedule="slanted_triangular", out=out,
                   callbacks=[*unfreezing, *callbacks], evaluate_every=4, checkpoint_every=1, progress=False, **settings)


def outcome(trainer):
    rows = [{name: value for name, value in row.items() if name not in ("tokens_per_second", "peak_mb")}
            for row in trainer.history.rows]
    slots = {name: (slot.step, [m.tobytes() for m in slot.moments]) for name, p in trainer.model.named_parameters()
             for slot in [trainer.optimizer.slots.get(id(p))] if slot}
    weights = {name: array.tobytes() for name, array in trainer.model.state_dict().items()}
    return rows, slots, weights, [p.requires_grad for p in trainer.model.parameters()], dict(mt.random.counters)


@every_model
@pytest.mark.parametrize("maker", ["gradual", "chain-thaw"])
def test_what_trains_moves_and_what_is_frozen_keeps_weights_moments_and_step_count(kind, task, maker):
    """Under chain-thaw the last group trains, is frozen for some stages, and goes on from where its moments were."""
    watch = Watch()
    trainer = make(kind, task, maker, callbacks=[watch])
    trainer.fit()
    (schedule,) = [callback.schedule for callback in trainer.callbacks if isinstance(callback, Unfreeze)]
    layers, names = dict(trainer.model.layer_groups()), {id(p): name for name, p in trainer.model.named_parameters()}
    assert len(watch.seen) == 12
    for step, (before, after) in enumerate(zip(watch.seen, watch.seen[1:])):
        moving = {names[id(p)] for group in schedule.at(step) for module in layers[group] for p in module.parameters()}
        for name in before:
            if name in moving:
                assert after[name][0] == before[name][0] + 1 and len(after[name][1]) == 2, (step, name)
                assert after[name][1] != before[name][1] and after[name][2] != before[name][2], (step, name)
                for then, now in zip(before[name][1][1:], after[name][1][1:]):      # v = 0.999 v + 0.001 grad^2, in float32
                    then, now = np.frombuffer(then, np.float32), np.frombuffer(now, np.float32)
                    assert (now >= 0.998 * then).all() and then.any(), (step, name)
            else:
                assert after[name] == before[name], (step, name)
    assert max(steps for steps, _, _ in watch.seen[-1].values()) < 11 or maker == "gradual"     # some were frozen again


@every_model
def test_a_layer_group_that_is_unfrozen_late_does_not_jump(kind, task):
    """AdamW's first step on a parameter is at most its rate, whatever step of the training it is: its own count begins at 1."""
    watch = Watch()
    trainer = make(kind, task, callbacks=[watch], clip=float("inf"))
    trainer.fit()
    late = [(name, p) for name, p in trainer.model.named_parameters() if "embedding" in name]
    start = trainer.callbacks[0].schedule.stages[-1][0]
    planned = tune.rates_by_step(trainer.model, trainer.optimizer, 12, 1e-2, "slanted_triangular")[start]["embeddings"]
    assert start < 11 and late
    for name, p in late:
        before, after = (np.frombuffer(watch.seen[step][name][2], np.float32) for step in (start, start + 1))
        assert not p.decays and watch.seen[start][name][:2] == (0, []) and watch.seen[start + 1][name][0] == 1
        assert 0.9 * planned < np.abs(after - before).max() < 1.001 * planned       # float32 of weights near 1


@every_model
@pytest.mark.parametrize("maker, at", [("gradual", 1), ("gradual", 3), ("gradual", 7), ("chain-thaw", 2), ("chain-thaw", 5)])
def test_stopped_and_resumed_in_the_middle_of_a_schedule_it_ends_bit_for_bit_the_same(kind, task, maker, at, tmp_path):
    """3 and 2 are the first steps of a stage, the others lie within one."""
    whole = make(kind, task, maker, tmp_path / "whole")
    whole.fit()
    expected = outcome(whole)
    with pytest.raises(KeyboardInterrupt):
        make(kind, task, maker, tmp_path / "cut", callbacks=[At(at)]).fit()
    again = make(kind, task, maker, tmp_path / "cut")
    mt.seed(99)
    again.fit(resume=True)
    assert outcome(again) == expected
    assert (tmp_path / "cut/best.safetensors").read_bytes() == (tmp_path / "whole/best.safetensors").read_bytes()


def test_so_with_momentum_and_an_average(tmp_path):
    whole = make("gpt", "head", "chain-thaw", tmp_path / "whole", SGD, ema=0.9)
    whole.fit()
    expected = outcome(whole)
    with pytest.raises(KeyboardInterrupt):
        make("gpt", "head", "chain-thaw", tmp_path / "cut", SGD, [At(5)], ema=0.9).fit()
    again = make("gpt", "head", "chain-thaw", tmp_path / "cut", SGD, ema=0.9)
    again.fit(resume=True)
    assert outcome(again) == expected


@pytest.mark.parametrize("then, now", [("gradual", "chain-thaw"), ("gradual", "last"), ("last", "gradual"), ("gradual", None),
                                       (None, "gradual")])
def test_another_schedule_is_refused_and_changes_nothing(then, now, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        make("gpt", "head", then, tmp_path, callbacks=[At(5)]).fit()
    other = make("gpt", "head", now, tmp_path)
    before = outcome(other)
    was, now_is = ([repr(Unfreeze(MAKERS[maker](other.model)))] if maker else None for maker in (then, now))
    with pytest.raises(ValueError, match=re.escape(f"is of another training: callbacks was {was}, is {now_is}. Give")):
        other.fit(resume=True)
    assert outcome(other) == before and other.step == 0


def test_a_checkpoint_from_before_schedules_were_kept_still_goes_on(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        make("gpt", "head", None, tmp_path, callbacks=[At(5)]).fit()
    file = checkpoints(tmp_path)[-1]
    state, arrays = read_state(file)
    del state["settings"]["callbacks"]
    write_state(file, state, arrays)
    again = make("gpt", "head", None, tmp_path)
    again.fit(resume=True)
    assert again.step == 12


def test_a_schedule_of_another_model_stops_the_training_at_its_first_step():
    other = make("awd_lstm", "head").callbacks
    trainer = make("gpt", "head", None, callbacks=other)
    with pytest.raises(ValueError, match=r"'layers\.\d' is no layer group of Classifier; the groups are embeddings, blocks"):
        trainer.fit()
    assert trainer.step == 0

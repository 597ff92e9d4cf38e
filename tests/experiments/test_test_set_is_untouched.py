"""The test set chooses nothing: neither rates nor weights have seen it when its texts are put into classes, once."""

import sys
from dataclasses import replace

import pytest

from minitune.experiments import Protocol, Recipe
from minitune.experiments.sample_efficiency import METHODS, make_task, run_one

MODULE = sys.modules["minitune.experiments.sample_efficiency"]      # the package's attribute of this name is the function
PROTOCOL = Protocol(sizes=(8,), least_steps=4, epochs=1, batch_size=4, evaluations=2, longest=2, trace_memory=False)
SPEC = {"labels": 8, "seed": 0, "rate": 1e-2}


class Locked:
    """A set of which no batch can be had until it is unlocked; sizes may be looked at."""

    def __init__(self, dataset):
        self.dataset, self.locked, self.batches = dataset, True, 0

    def __len__(self):
        return len(self.dataset)

    def __getattr__(self, name):
        return getattr(self.dataset, name)

    def batch(self, rows):
        assert not self.locked, "the test set was read"
        self.batches += 1
        return self.dataset.batch(rows)


@pytest.fixture
def task(toy, backbone):
    made = make_task(toy, backbone, METHODS, PROTOCOL)
    return replace(made, test=Locked(made.test))


@pytest.fixture
def trainers(monkeypatch):
    """The trainers of all runs, as they are made."""
    made, trainer = [], Recipe.trainer

    def noted(*given, **settings):
        made.append(trainer(*given, **settings))
        return made[-1]

    monkeypatch.setattr(Recipe, "trainer", noted)
    return made


@pytest.mark.parametrize("method", ["scratch", "frozen", "full", "lora"])
def test_a_run_that_chooses_rates_does_not_read_it(method, task):
    found = run_one(task, SPEC | {"method": method, "sweep": True})
    assert "error" not in found and "wrong" not in found and not task.test.batches


@pytest.mark.parametrize("method", ["scratch", "frozen", "full", "lora"])
def test_a_tested_run_reads_it_in_predict_alone_after_its_training(method, task, trainers, monkeypatch):
    predict = MODULE.predict

    def unlocking(model, dataset):
        assert dataset is task.test and trainers[-1].model is model and trainers[-1].step >= 4
        task.test.locked = False
        try:
            return predict(model, dataset)
        finally:
            task.test.locked = True

    monkeypatch.setattr(MODULE, "predict", unlocking)
    found = run_one(task, SPEC | {"method": method})
    assert 0 <= found["error"] <= 1 and task.test.batches
    assert len(trainers) == 1 and trainers[0].valid is task.valid
    assert found["valid_error"] == trainers[0].best.measured["error"]


def test_seeds_train_on_other_rows_of_the_training_set(task, trainers):
    for seed in (0, 1):
        run_one(task, SPEC | {"method": "full", "seed": seed, "sweep": True})
    rows = [[tuple(document) for document in trainer.train.documents] for trainer in trainers]
    assert sorted(rows[0]) != sorted(rows[1]) and len(rows[0]) == len(rows[1]) == 8
    assert all(document in [tuple(d) for d in task.train.documents] for row in rows for document in row)

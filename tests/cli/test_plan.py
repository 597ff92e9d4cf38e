"""minitune plan: bytes and seconds by method, of a folder and of a model that comes with the package."""

import json
import sys

import pytest

from minitune import cli
from minitune.experiments import plan
from minitune.experiments.calibration import Rates

pytest.importorskip("numba", reason='a plan is of the compiled twins: pip install "minitune[test]"')


def run(*arguments):
    return cli.main([str(argument) for argument in arguments])


def test_one_method_is_planned_as_the_function_plans_it(base, capsys, tmp_path):
    assert run("plan", base, "--method", "lora", "--batch-size", 2, "--no-time", "--json", tmp_path / "plan.json") == 0
    (row,) = json.loads((tmp_path / "plan.json").read_text())
    found = plan(base, "lora", 2, rates=False)
    assert row == found.row() and capsys.readouterr().out == f"{found}\n\n"


def test_several_methods_stand_beside_each_other_and_can_be_measured(base, capsys):
    assert run("plan", base, "--method", "full,lora,head", "--labels", 3, "--batch-size", 2, "--block-size", 8, "--no-time",
               "--measure") == 0
    out = capsys.readouterr().out
    assert out.count("peak, measured") == 3
    table = out.splitlines()[-4:]
    assert table[0].split()[:2] == ["method", "trained"] and [line.split()[0] for line in table[1:]] == ["full", "lora", "head"]
    assert [line.split()[1] for line in table[1:]] == [f"{plan(base, method, 2, 8, labels=3, rates=False).trainable:,}"
                                                      for method in ("full", "lora", "head")]


def test_time_is_planned_by_what_is_known_of_the_machine(base, capsys, monkeypatch):
    loops = dict.fromkeys([f"{loop}{end}" for end in ("", " backward") for loop in (
        "bytes", "gelu", "softmax", "layer_norm", "score", "score channel", "call")] + ["adamw"], 1e-9)
    rates = Rates({4: 1e9, 8: 1e9}, loops, {})
    monkeypatch.setattr(sys.modules[plan.__module__], "calibrate", lambda: rates)
    assert run("plan", base, "--batch-size", 2) == 0
    assert f"{1000 * plan(base, 'full', 2, rates=rates).seconds:,.1f} ms" in capsys.readouterr().out


@pytest.mark.parametrize("arguments, said", [(["--method", "lorra"], "no method 'lorra'"), (["--method", "head"], "put a head"),
                                             (["--block-size", "999"], "block_size from 1 to")])
def test_what_cannot_be_planned_is_told(arguments, said, base, capsys):
    assert run("plan", base, "--no-time", *arguments) == 2
    assert said in capsys.readouterr().err


def test_a_model_that_is_not_there_is_told(tmp_path, capsys):
    assert run("plan", tmp_path / "nowhere", "--no-time") == 2
    assert "there is no folder" in capsys.readouterr().err

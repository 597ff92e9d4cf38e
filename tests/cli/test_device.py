"""--device and --dtype of the commands that train or read a model."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from own_data import contents

from minitune import cli
from minitune.devices import device_of
from minitune.twins.cuda import emulation

sys.path.append(str(Path(__file__).parents[1] / "kernels"))
import standin_cupy  # noqa: E402


def run(*arguments):
    return cli.main([str(argument) for argument in arguments])


def commands(base, run_folder, table, out):
    return {"pretrain": (table, "--kind", "text", "--text", "text", "--out", out), "evaluate": (run_folder,),
            "finetune": (table, "--base", base, "--out", out), "predict": (run_folder, "a wave"), "generate": (base, "a")}


@pytest.mark.parametrize("command", ["pretrain", "finetune", "evaluate", "predict", "generate"])
def test_without_a_gpu_a_command_says_so_in_one_line_and_writes_nothing(command, base, run_folder, table, tmp_path, monkeypatch,
                                                                        capsys):
    monkeypatch.setitem(sys.modules, "cupy", None)
    before = contents(run_folder)
    assert run(command, *commands(base, run_folder, table, tmp_path / "out")[command], "--device", "cuda") == 2
    line, = capsys.readouterr().err.splitlines()
    assert line.startswith(f'minitune {command}: device: "cuda" needs CuPy, which is not installed.') and "cpu" in line
    assert contents(run_folder) == before and not (tmp_path / "out").exists()


def test_predictions_in_bfloat16_are_nearly_those_in_float32(run_folder, tmp_path):
    """Probabilities of about 1/2 from logits with 8 bits."""
    texts, found = tmp_path / "texts.txt", []
    texts.write_text("wave tide shell\ntree leaf bark moss\nboat\n", encoding="utf-8")
    for dtype in "float32", "bfloat16":
        assert run("predict", run_folder, "--file", texts, "--out", tmp_path / f"{dtype}.csv", "--dtype", dtype) == 0
        with open(tmp_path / f"{dtype}.csv", newline="", encoding="utf-8") as file:
            found.append([[float(row[f"p({label})"]) for label in ("sea", "wood")] for row in csv.DictReader(file)])
    np.testing.assert_allclose(*found, 0, 2**-7)
    assert found[0] != found[1]


def test_a_model_tuned_in_bfloat16_is_evaluated_and_saved_as_any_other(base, table, tmp_path, capsys):
    out = tmp_path / "run"
    assert run("finetune", table, "--base", base, "--out", out, "--epochs", 2, "--method", "lora", "--dtype", "bfloat16") == 0
    assert json.loads((out / "run.json").read_text())["arguments"]["dtype"] == "bfloat16"
    assert run("evaluate", out) == 0 and run("evaluate", out, "--dtype", "bfloat16") == 0
    assert "accuracy" in capsys.readouterr().out
    tuned = cli.evaluate.from_pretrained(out / "model")
    assert tuned.dtype is None and all(device_of(p.data) == "cpu" and p.dtype == np.float32 for p in tuned.parameters())


@pytest.mark.parametrize("method", ["full", "lora", "frozen"])
def test_a_model_tuned_on_a_device_is_saved_and_used_there_and_without_one(method, base, table, tmp_path, capsys):
    if emulation.compiler() is None:
        pytest.skip("the emulation needs g++, which is not installed")
    out = tmp_path / "run"
    with standin_cupy.installed():
        assert run("finetune", table, "--base", base, "--out", out, "--epochs", 1, "--method", method, "--device", "cuda",
                   "--dtype", "bfloat16") == 0
        capsys.readouterr()
        assert run("predict", out, "wave tide", "--device", "cuda") == 0
        there = capsys.readouterr().out
    assert run("predict", out, "wave tide") == 0 and capsys.readouterr().out == there


def test_a_model_pre_trained_on_a_device_writes_there_and_without_one(table, tmp_path, capsys):
    if emulation.compiler() is None:
        pytest.skip("the emulation needs g++, which is not installed")
    sizes = [f"--{name}={n}" for name, n in {"n-layer": 1, "n-head": 2, "n-embd": 16, "block-size": 8, "vocab-size": 280,
                                             "batch-size": 2, "steps": 2}.items()]
    out = tmp_path / "run"
    with standin_cupy.installed():
        assert run("pretrain", table, "--kind", "text", "--text", "text", "--out", out, *sizes, "--device", "cuda", "--dtype",
                   "bfloat16") == 0
        capsys.readouterr()
        assert run("generate", out, "wave", "--max-new-tokens", 6, "--device", "cuda") == 0
        there = capsys.readouterr().out
    assert run("generate", out, "wave", "--max-new-tokens", 6) == 0 and capsys.readouterr().out == there


def test_a_text_is_written_in_bfloat16(base, capsys):
    assert run("generate", base, "wave", "--max-new-tokens", 5, "--dtype", "bfloat16") == 0
    assert capsys.readouterr().out.startswith("wave")

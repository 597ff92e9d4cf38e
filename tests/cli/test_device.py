"""--device and --dtype of the commands that train or read a model."""

import csv
import json
import sys
from pathlib import Path

import numpy as np
import pytest
from own_data import contents

from minitune import cli
from minitune.data import read
from minitune.devices import device_of
from minitune.experiments import Pretraining, pretrain
from minitune.twins.cuda import emulation

sys.path.append(str(Path(__file__).parents[1] / "kernels"))
import standin_cupy  # noqa: E402

SIZES = [f"--{name}={n}" for name, n in {"n-layer": 1, "n-head": 2, "n-embd": 16, "block-size": 8, "vocab-size": 280,
                                         "batch-size": 2, "steps": 2}.items()]


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


@pytest.mark.parametrize("package, given", [("cupy", ("--device", "cuda")), ("ml_dtypes", ("--dtype", "bfloat16"))])
@pytest.mark.parametrize("command", ["pretrain", "finetune"])
def test_what_is_not_there_is_told_before_minutes_of_work(command, package, given, table, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, package, None)
    for module, name in ((cli.finetune, "base_model"), (cli.pretrain, "pretrain"), (cli.run_folder, "read_data")):
        monkeypatch.setattr(module, name, lambda *_, **__: pytest.fail("begun"))
    assert run(command, table, "--out", tmp_path / "out", *given) == 2
    line, = capsys.readouterr().err.splitlines()
    assert "needs" in line and not (tmp_path / "out").exists()


def test_an_interrupted_run_goes_on_on_the_device_that_is_asked_for_and_in_its_own_dtype(base, table, tmp_path, monkeypatch,
                                                                                         capsys):
    if emulation.compiler() is None:
        pytest.skip("the emulation needs g++, which is not installed")
    from minitune.train import Trainer
    step, out = Trainer.train_step, tmp_path / "run"

    def interrupted(self, *given):
        if self.step == 3:
            raise KeyboardInterrupt
        return step(self, *given)

    with standin_cupy.installed(), monkeypatch.context() as patch:
        patch.setattr(Trainer, "train_step", interrupted)
        assert run("finetune", table, "--base", base, "--out", out, "--epochs", 2, "--device", "cuda",
                   "--dtype", "bfloat16") == 130
    assert f"minitune finetune --resume --out {out} --device cuda goes on" in capsys.readouterr().err
    asked = json.loads((out / "run.json").read_text())["arguments"]
    assert "device" not in asked and asked["dtype"] == "bfloat16" and list((out / "checkpoints").iterdir())
    monkeypatch.setitem(sys.modules, "cupy", None)
    before = contents(out)
    assert run("finetune", "--resume", "--out", out, "--device", "cuda") == 2 and contents(out) == before
    kinds = []
    monkeypatch.setattr(Trainer, "train_step", lambda self, *given: kinds.append(
        (self.step, self.model.device, str(self.model.dtype))) or step(self, *given))
    assert run("finetune", "--resume", "--out", out, "--device", "cpu") == 0
    assert kinds[0][0] > 0 and {kind[1:] for kind in kinds} == {("cpu", "bfloat16")}


def test_a_model_that_was_pre_trained_before_comes_in_the_dtype_asked_for(table, tmp_path):
    dataset = read(table, text="text", kind="text")
    settings = Pretraining(vocab_size=280, block_size=8, n_layer=1, n_head=2, n_embd=16, steps=2, batch_size=2)
    for _ in range(2):                          # the second time it is read
        made = pretrain(dataset, tmp_path / "base", settings, progress=False, dtype="bfloat16")
        assert str(made.dtype) == "bfloat16"
    again = pretrain(dataset, tmp_path / "base", settings, progress=False)
    assert again.dtype is None and again.token_embedding.weight.dtype == np.float32


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
    out = tmp_path / "run"
    with standin_cupy.installed():
        assert run("pretrain", table, "--kind", "text", "--text", "text", "--out", out, *SIZES, "--device", "cuda", "--dtype",
                   "bfloat16") == 0
        capsys.readouterr()
        assert run("generate", out, "wave", "--max-new-tokens", 6, "--device", "cuda") == 0
        there = capsys.readouterr().out
    assert run("generate", out, "wave", "--max-new-tokens", 6) == 0 and capsys.readouterr().out == there


def test_a_text_is_written_in_bfloat16(base, capsys):
    assert run("generate", base, "wave", "--max-new-tokens", 5, "--dtype", "bfloat16") == 0
    assert capsys.readouterr().out.startswith("wave")

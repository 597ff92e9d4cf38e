"""The command: help that a newcomer understands, one clear line and exit code 2 for wrong input, a demo that goes on."""

import json
import sys

import pytest

from minitune import cli
from minitune.cli import demo
from minitune.experiments import Pretraining, Protocol

TINY = Pretraining(vocab_size=400, block_size=16, n_layer=1, n_head=2, n_embd=16, steps=2, batch_size=4, held_out=2)
MODEL_FILES = ("model.safetensors", "config.json", "tokenizer.json")
PROTOCOL = Protocol(sizes=(8,), seeds=(0,), sweep_at=(8,), least_steps=2, epochs=0, longest=1,
                    rates={"scratch": (1e-3,), "frozen": (1e-2,), "full": (1e-3,), "lora": (1e-2,)})


@pytest.fixture
def tiny(monkeypatch):
    monkeypatch.setattr(demo, "QUICK_PRETRAINING", TINY)
    monkeypatch.setattr(demo, "QUICK", PROTOCOL)


def test_the_demo_writes_what_it_promises_and_ends_with_the_sentence(tiny, tmp_path, capsys):
    out = tmp_path / "demo"
    assert cli.main(["demo", "--quick", "--out", str(out), "--seed", "3", "--workers", "1"]) == 0
    lines = [json.loads(line) for line in (out / "results.jsonl").read_text().splitlines()]
    assert {line["method"] for line in lines} == {"scratch", "frozen", "full", "lora", "tf-idf"}
    assert {line["seed"] for line in lines} == {3}
    for file in ("sample_efficiency.png", "results.json", *(f"model/{name}" for name in MODEL_FILES)):
        assert (out / file).stat().st_size > 0
    printed = capsys.readouterr().out
    assert "test error in %" in printed and "8 labels" in printed.splitlines()[-1]


def test_a_second_demo_goes_on_where_the_first_stopped(tiny, tmp_path, monkeypatch, capsys):
    arguments = ["demo", "--quick", "--out", str(tmp_path), "--workers", "1"]
    cli.main(arguments)
    before = (tmp_path / "results.jsonl").read_text()
    module = sys.modules["minitune.experiments.sample_efficiency"]          # the package's attribute is the function
    monkeypatch.setattr(module, "run_one", lambda task, spec: pytest.fail(f"ran again: {spec}"))
    monkeypatch.setattr("minitune.experiments.pretraining.Trainer", None)
    assert cli.main(arguments) == 0 and (tmp_path / "results.jsonl").read_text() == before


@pytest.mark.parametrize("arguments, expected", [
    ([], "required: COMMAND"), (["dance"], "invalid choice"), (["demo", "--seed", "-1"], "whole number from 0"),
    (["demo", "--workers", "0"], "whole number from 1"), (["demo", "--speed"], "unrecognized arguments: --speed"),
])
def test_wrong_arguments_give_one_line_and_exit_code_2(arguments, expected, capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(arguments)
    error = capsys.readouterr().err
    assert stop.value.code == 2 and expected in error and error.count("\n") == 1


def test_wrong_data_gives_one_line_and_exit_code_2(tmp_path, capsys):
    assert cli.main(["demo", "--data", "imbd", "--out", str(tmp_path)]) == 2
    error = capsys.readouterr().err
    assert "Did you mean 'imdb'" in error and error.count("\n") == 1


def test_out_must_be_a_folder(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert cli.main(["demo", "--out", str(tmp_path / "file")]) == 2
    assert "is a file; give a folder" in capsys.readouterr().err


def test_ctrl_c_says_how_to_go_on(monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(demo, "pretrain", lambda *a, **k: (_ for _ in ()).throw(KeyboardInterrupt))
    assert cli.main(["demo", "--out", str(tmp_path)]) == 130
    assert "the same command goes on" in capsys.readouterr().err


def test_help_and_version(capsys):
    for arguments, expected in ((["--help"], "demo"), (["demo", "--help"], "from scratch, only a new head"),
                                (["--version"], "minitune 0.")):
        with pytest.raises(SystemExit) as stop:
            cli.main(arguments)
        assert stop.value.code == 0 and expected in " ".join(capsys.readouterr().out.split())

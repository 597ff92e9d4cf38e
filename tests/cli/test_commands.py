"""The commands on data of one's own: what each writes, and that one's output is the next one's input."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from own_data import WORDS, contents, rows, ship, write_csv

from minitune import cli, models
from minitune.formats.folder import read_tensors

RUN_FILES = {"run.json", "history.csv", "history.jsonl", "history.png", "evaluation.json", "evaluation.png",
             "model/config.json", "model/model.safetensors", "model/tokenizer.json", "model/README.md"}


def run(*arguments):
    return cli.main([str(argument) for argument in arguments])


def test_finetune_writes_a_run_folder_with_everything_in_it(ended, capsys):
    found = {file.relative_to(ended / "run").as_posix() for file in (ended / "run").rglob("*") if file.is_file()}
    assert found >= RUN_FILES and sum(name.startswith("checkpoints/") for name in found) == 2
    record = json.loads((ended / "run/run.json").read_text())
    assert record["command"] == "finetune" and record["arguments"]["method"] == "lora"
    assert record["data"]["labels"] == sorted(WORDS) and record["results"]["split"] == "test"
    assert 0 <= record["results"]["accuracy"] <= 1 and 0 <= record["results"]["baseline_accuracy"] <= 1
    card = (ended / "run/model/README.md").read_text()
    assert "A classifier, from places" in card and "expected calibration error" in card and "by lora" in card
    assert isinstance(models.from_pretrained(ended / "run/model"), models.Classifier)


def test_predict_evaluate_and_predictions_of_a_file(run_folder, tmp_path, capsys):
    assert run("predict", run_folder, "wave tide shell", "moss bark") == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 and all(line.split()[0] in WORDS for line in lines) and "wave tide shell" in lines[0]
    new = write_csv(tmp_path / "new.csv", [(text,) for text, _ in rows(6)], header=("text",))
    assert run("predict", run_folder, "--file", new) == 0
    assert run("predict", run_folder, "--file", new) == 2       # what is there is not written over
    assert "predictions-new.csv is there already" in capsys.readouterr().err
    with open(run_folder / "predictions-new.csv", newline="", encoding="utf-8") as out:
        table = list(csv.DictReader(out))
    assert len(table) == 6 and {row["label"] for row in table} <= set(WORDS)
    assert all(abs(float(row["p(sea)"]) + float(row["p(wood)"]) - 1) < 2e-4 for row in table)
    assert run("evaluate", run_folder, "--split", "valid") == 0
    assert "4 rows (valid)" in capsys.readouterr().out
    assert json.loads((run_folder / "evaluation-places-valid/evaluation.json").read_text())["split"] == "valid"
    assert (run_folder / "evaluation-places-valid/evaluation.png").stat().st_size > 0
    other = write_csv(tmp_path / "other.csv", rows(20, seed=5))
    assert run("evaluate", run_folder, other, "--out", tmp_path / "there") == 0
    assert "20 rows (all)" in capsys.readouterr().out           # every row of a file that was not learned from
    assert (tmp_path / "there/evaluation.json").exists()


def test_evaluate_refuses_the_runs_own_table_once_it_has_changed(run_folder, capsys):
    write_csv(run_folder.parent / "places.csv", [*rows(40), *rows(10, seed=3)])
    assert run("evaluate", run_folder) == 2
    assert "has changed since the run" in capsys.readouterr().err


def test_a_language_model_is_measured_on_the_texts_of_labelled_rows(base, table, tmp_path, capsys):
    assert run("evaluate", base, table, "--out", tmp_path / "there") == 0
    assert "perplexity" in capsys.readouterr().out


def test_what_is_cut_is_said_by_every_command(run_folder, base, tmp_path, capsys):
    table = write_csv(tmp_path / "long.csv", [(f"{text} {text} {text}", label) for text, label in rows(20)])
    assert run("predict", run_folder, "wave " * 99) == 0
    assert "1 of 1 texts are longer than the model's 16 tokens and were cut" in capsys.readouterr().out
    assert run("evaluate", run_folder, table) == 0 and "20 of 20 texts are longer" in capsys.readouterr().out
    assert run("data", table, "--base", base) == 0 and "and were cut" in capsys.readouterr().out


def test_a_baseline_that_cannot_be_measured_ends_nothing(base, tmp_path, capsys):
    """TF-IDF counts words of two letters and more; these texts have none."""
    table = write_csv(tmp_path / "letters.csv", [(f"{a} {b}", a) for a in "ab" for b in "cdefghijklmnopqrst"])
    assert run("finetune", table, "--base", base, "--out", tmp_path / "run", "--epochs", 1) == 0
    assert "baseline could not be measured" in capsys.readouterr().out and (tmp_path / "run/model/README.md").exists()


def test_an_interruption_before_anything_is_written_is_begun_again(table, tmp_path, monkeypatch, capsys):
    from minitune.cli import finetune

    def interrupted(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(finetune, "base_model", interrupted)
    assert run("finetune", table, "--out", tmp_path / "run") == 130
    assert "the same command goes on from there" in capsys.readouterr().err


def test_a_backward_model_for_the_second_of_a_pair(tmp_path):
    (tmp_path / "book.txt").write_text("\n\n".join(text for text, _ in rows(300, seed=2)), encoding="utf-8")
    sizes = ["--n-layer", 1, "--n-head", 2, "--n-embd", 16, "--vocab-size", 300, "--block-size", 16, "--batch-size", 4]
    assert run("pretrain", tmp_path / "book.txt", "--out", tmp_path / "base", "--steps", 2, "--backward", *sizes) == 0
    assert models.from_pretrained(tmp_path / "base" / "model").tokenizer.backward


def test_pretrain_then_finetune_on_text_then_generate(tmp_path, capsys):
    (tmp_path / "book.txt").write_text("\n\n".join(text for text, _ in rows(300, seed=2)), encoding="utf-8")
    sizes = ["--n-layer", 1, "--n-head", 2, "--n-embd", 16, "--vocab-size", 300, "--block-size", 16, "--batch-size", 4]
    assert run("pretrain", tmp_path / "book.txt", "--out", tmp_path / "base", "--steps", 5, *sizes) == 0
    for file in ("run.json", "history.png", "model/README.md", "model/model.safetensors"):
        assert (tmp_path / "base" / file).stat().st_size > 0
    assert json.loads((tmp_path / "base/run.json").read_text())["results"]["perplexity"] > 1
    assert run("finetune", tmp_path / "book.txt", "--base", tmp_path / "base", "--out", tmp_path / "tuned", "--epochs", 1) == 0
    assert "perplexity" in capsys.readouterr().out
    assert run("evaluate", tmp_path / "tuned") == 0
    arguments = ["generate", tmp_path / "tuned", "wave", "--max-new-tokens", 12, "--seed", 3]
    capsys.readouterr()
    outputs = []
    for _ in range(2):
        assert run(*arguments) == 0
        outputs.append(capsys.readouterr().out)
    assert outputs[0] == outputs[1] and outputs[0].startswith("wave") and len(outputs[0]) > 6


CHAT = [{"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": label}]} for text, label in rows(40)]


def test_chats_are_learned_and_asked(base, tmp_path, capsys):
    chats = tmp_path / "chats.jsonl"
    chats.write_text("".join(json.dumps(line) + "\n" for line in CHAT), encoding="utf-8")
    assert run("data", chats, "--base", base) == 0
    assert "packed into" in capsys.readouterr().out
    assert run("finetune", chats, "--base", base, "--out", tmp_path / "run", "--epochs", 1) == 0
    assert "longer than the model's 16 tokens and were cut" in capsys.readouterr().out
    assert run("generate", tmp_path / "run", "wave", "--max-new-tokens", 4, "--temperature", 0, "--system", "Be brief.") == 0
    assert not capsys.readouterr().out.startswith("wave")      # the answer alone


def test_a_prompt_ends_at_generation_as_the_prompts_did_in_training(base, tmp_path, monkeypatch):
    table = write_csv(tmp_path / "answers.csv", rows(40), header=("question", "answer"))
    assert run("finetune", table, "--base", base, "--out", tmp_path / "run", "--epochs", 1) == 0
    prompts = []
    monkeypatch.setattr(models.GPT, "stream", lambda self, prompt, *more, **settings: prompts.append(prompt) or iter([]))
    assert run("generate", tmp_path / "run", "wave tide") == 0 and run("generate", base, "wave tide") == 0
    assert prompts == ["wave tide\n", "wave tide"]


@pytest.fixture
def shipped(base, tmp_path, monkeypatch):
    """The tiny base as the one that comes with the package, and a working directory without models."""
    ship(base, tmp_path / "shipped", monkeypatch)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


def test_the_model_of_the_package_is_finetunes_default_and_goes_by_its_name(shipped, base, table, capsys):
    for name, given in {"default": (), "named": ("--base", "minitune-base"), "path": ("--base", base)}.items():
        assert run("finetune", table, "--out", name, "--epochs", 1, *given) == 0
    ends = [read_tensors(f"{name}/model/model.safetensors") for name in ("default", "named", "path")]
    assert all(np.array_equal(end[key], array) for end in ends for key, array in ends[0].items())
    assert capsys.readouterr().out.count("Base: minitune-base\n") == 2
    assert "| base | minitune-base |" in Path("default/model/README.md").read_text()
    assert run("finetune", "--resume", "--out", "default") == 0


def test_the_model_of_the_package_writes_is_measured_and_hides_itself_behind_no_folder(shipped, base, table, capsys):
    written = []
    for model in "minitune-base", base:
        assert run("generate", model, "wave", "--max-new-tokens", 5) == 0
        written.append(capsys.readouterr().out)
    assert written[0] == written[1] and run("data", table, "--base", "minitune-base") == 0
    for _ in range(2):                          # what the first one writes is not taken for the model
        assert run("evaluate", "minitune-base", table) == 0
    assert [file.name for file in Path("runs/minitune-base").iterdir()] == ["evaluation-places-all"]
    assert not Path("minitune-base").exists()
    assert run("predict", "minitune-base", "wave") == 2 and "minitune-base holds a GPT" in capsys.readouterr().err


def test_data_shows_and_writes_splits_that_read_takes(table, tmp_path, capsys):
    assert run("data", table, "--out", tmp_path / "splits") == 0
    assert "sea 16, wood 16" in capsys.readouterr().out
    assert run("data", tmp_path / "splits") == 0
    assert "train 32, valid 4, test 4" in capsys.readouterr().out


@pytest.mark.parametrize("given", [(), ("--base", "minitune-base")])
def test_sample_efficiency_on_data_of_ones_own(given, shipped, tmp_path, monkeypatch, capsys):
    from minitune.cli import sample_efficiency
    from minitune.experiments import Protocol
    protocol = Protocol(sizes=(4,), least_steps=2, epochs=0, longest=1, rates={"scratch": (1e-3,), "full": (1e-3,)})
    monkeypatch.setattr(sample_efficiency, "Protocol", lambda: protocol)
    table = write_csv(tmp_path / "places.csv", rows(80))
    arguments = ["sample-efficiency", table, *given, "--out", tmp_path / "out", "--sizes", "4", "--seeds", 1, "--methods",
                 "scratch,full", "--workers", 1]
    assert run(*arguments) == 0
    assert "4 labels" in capsys.readouterr().out.splitlines()[-1] and (tmp_path / "out/sample_efficiency.png").exists()
    assert run(*arguments[:-4], "--methods", "scratch,fll") == 2
    assert "there is no 'fll'" in capsys.readouterr().err


# ---- Resuming ------------------------------------------------------------------------------------------------------

def test_an_interrupted_finetuning_goes_on_by_resume_alone_and_ends_the_same(base, table, tmp_path, monkeypatch, capsys):
    arguments = ["finetune", table, "--base", base, "--epochs", 3, "--method", "lora"]
    assert run(*arguments, "--out", tmp_path / "whole") == 0
    from minitune.train import Trainer
    step, calls = Trainer.train_step, []

    def interrupted(self, *given):
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return step(self, *given)

    monkeypatch.setattr(Trainer, "train_step", interrupted)
    capsys.readouterr()
    assert run(*arguments, "--out", tmp_path / "cut") == 130
    assert f"minitune finetune --resume --out {tmp_path / 'cut'} goes on" in capsys.readouterr().err
    monkeypatch.setattr(Trainer, "train_step", step)
    assert run("finetune", "--resume", "--out", tmp_path / "cut") == 0
    ends = [read_tensors(tmp_path / name / "model/model.safetensors") for name in ("whole", "cut")]
    assert ends[0].keys() == ends[1].keys() and all((ends[0][name] == ends[1][name]).all() for name in ends[0])


def test_a_run_that_has_ended_resumes_to_the_same(run_folder):
    before = contents(run_folder)
    assert run("finetune", "--resume", "--out", run_folder) == 0
    after = contents(run_folder)
    changed = {str(file) for file in before if before[file] != after[file]}
    assert changed <= {"run.json"} and before.keys() == after.keys()        # its arguments name another place


@pytest.mark.parametrize("arguments, expected", [
    (["finetune", "--out", "{run}"], "holds a run already"), (["finetune", "{csv}", "--out", "{run}"], "by --resume, or give"),
    (["finetune", "--out", "{new}"], "expected DATA"), (["finetune", "{csv}", "--out", "{csv}"], "is a file"),
    (["pretrain", "--resume", "--out", "{run}"], "holds no pretrain to resume"),
    (["finetune", "--resume", "--out", "{new}"], "holds no finetune to resume"),
    (["predict", "{run}"], "expected texts"), (["generate", "{run}", "x"], "writes no text. Use minitune predict"),
    (["predict", "{base}", "x"], "predicts no classes of texts. Use minitune generate"),
    (["predict", "{new}", "x"], "there is no folder"),
    (["evaluate", "{run}", "--split", "tset"], "no split 'tset'; it has train, valid, test"),
    (["evaluate", "{base}"], "no run's folder, or its run has not ended, so DATA must be given"),
    (["sample-efficiency", "{csv}", "--base", "{base}", "--sizes", "4", "--out", "{run}"], "holds a run of finetune"),
    (["sample-efficiency", "{csv}", "--base", "{base}", "--out", "{new}", "--test", "0"], "no split named 'test'"),
    (["finetune", "{csv}", "--resume", "--out", "{run}"], "reads everything from the run's folder"),
    (["evaluate", "{run}", "--out", "{csv}"], "is a file; give a folder"),
    (["generate", "{base}", "x", "--system", "y"], "--system is for models fine-tuned on chats"),
    (["generate", "{base}", "x", "--top-p", "2"], "top_p must be in"), (["finetune", "{csv}", "--base", "{csv}"], "places.csv"),
    (["finetune", "{csv}", "--base", "{base}", "--label", "lable", "--out", "{new}"], "'lable'"),
    (["data", "nowhere.csv"], "nowhere.csv"), (["data", "imbd"], "no file or folder imbd; load: no data set named 'imbd'.")])
def test_what_cannot_be_done_is_one_line_and_exit_code_2(arguments, expected, run_folder, base, table, tmp_path, capsys):
    before = contents(run_folder)
    places = {"run": run_folder, "base": base, "csv": table, "new": tmp_path / "new"}
    assert run(*(argument.format(**places) for argument in arguments)) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1 and error.startswith(f"minitune {arguments[0]}: ")
    assert contents(run_folder) == before and not (tmp_path / "new").exists()

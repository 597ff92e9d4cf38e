"""minitune compare: what it writes and says, that it goes on, and what it refuses."""

import argparse
import json
from dataclasses import replace

import pytest
from own_data import contents, rows, write_csv

from minitune import cli
from minitune.cli import compare
from minitune.experiments import Comparison

PLOTS = {"error_against_parameters.png", "error_against_seconds.png", "forgetting_against_learning.png"}


@pytest.fixture
def table(tmp_path):
    return write_csv(tmp_path / "places.csv", rows(80))


@pytest.fixture
def command(base, table, tmp_path, monkeypatch):
    """Calls the command with few steps, on a text of one's own."""
    pytest.importorskip("matplotlib", reason="the plots need matplotlib")
    monkeypatch.setattr(compare, "PROTOCOL", replace(compare.PROTOCOL, least_steps=2, epochs=0))
    (tmp_path / "general.txt").write_text("\n\n".join(text for text, _ in rows(20, seed=9)), encoding="utf-8")

    def run(*more, model=base, data=table):
        return cli.main([str(part) for part in ("compare", model, data, "--out", tmp_path / "out", "--general",
                                                tmp_path / "general.txt", "--workers", 1, *more)])

    return run


def test_it_shows_tables_and_writes_result_and_plots(command, tmp_path, capsys):
    assert command("--sizes", "4,8", "--seeds", "2", "--methods", "full,lora,head") == 0
    out, found = capsys.readouterr().out, Comparison.from_json(tmp_path / "out/comparison.json")
    assert found.table() in out and found.rates() in out and found.beside_papers() in out
    assert out.splitlines()[-1] == found.sentence() and found.methods == ["full", "lora", "head"] and found.sizes == [4, 8]
    assert {file.name for file in (tmp_path / "out").glob("*.png")} == PLOTS and all(name in out for name in PLOTS)
    record = json.loads((tmp_path / "out/run.json").read_text())
    assert record["command"] == "compare" and record["results"]["sentences"] == [found.sentence(labels=n) for n in (4, 8)]
    assert found.results.settings["general"]["name"] == "given" and {row["seed"] for row in found.results.rows} == {0, 1}


def test_the_same_command_goes_on_and_more_methods_are_added(command, tmp_path, monkeypatch, capsys):
    assert command("--sizes", "4", "--seeds", "1") == 0
    lines = (tmp_path / "out/results.jsonl").read_text()
    assert command("--sizes", "4", "--seeds", "1", "--methods", "full,lora,ia3") == 0
    assert (tmp_path / "out/results.jsonl").read_text().startswith(lines)
    assert len((tmp_path / "out/results.jsonl").read_text().splitlines()) == 3


def test_the_block_size_and_the_first_seed_are_as_asked(command, tmp_path, capsys):
    assert command("--sizes", "4", "--seeds", "1", "--seed", "5", "--block-size", "9", "--methods", "head") == 0
    found = Comparison.from_json(tmp_path / "out/comparison.json")
    assert found.results.settings["protocol"]["block_size"] == 9 and [row["seed"] for row in found.results.rows] == [5]
    assert {row["seed"] for row in found.results.settings["sweep"]} == {5}


@pytest.mark.parametrize("arguments, expected", [
    (["--methods", "full,lorra"], "there is no method 'lorra'; there are full, head"), (["--sizes", "4000"], "Ask for fewer"),
    (["--general", "nowhere.txt"], "nowhere.txt"), (["--test", "0"], "no split named 'test'"),
    (["--methods", ","], "at least one method"), (["--methods", "prompt"], "block_size = 16"),
    (["--methods", "few-shot"], "reads more tokens than 16"), (["--label", "lable"], "'lable'")])
def test_what_cannot_be_done_is_one_line_and_exit_code_2(arguments, expected, command, tmp_path, capsys):
    assert command("--sizes", "4", *arguments) == 2
    error = capsys.readouterr().err
    assert expected in error and error.count("\n") == 1 and error.startswith("minitune compare: ")
    assert not (tmp_path / "out").exists()


def test_a_base_or_a_folder_that_is_none(command, tmp_path, capsys):
    assert command("--sizes", "4", model=tmp_path / "nowhere") == 2 and "there is no folder" in capsys.readouterr().err
    (tmp_path / "out").write_text("a file")
    before = contents(tmp_path)
    assert command("--sizes", "4") == 2 and "is a file; give a folder" in capsys.readouterr().err
    assert contents(tmp_path) == before


def test_a_folder_of_another_command_is_left_alone(command, tmp_path, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out/run.json").write_text('{"command": "finetune"}')
    assert command("--sizes", "4") == 2 and "holds a run of finetune" in capsys.readouterr().err


def test_runs_go_one_by_one_unless_told():
    """Side by side they slow each other, and seconds would tell of the machine, not of the methods."""
    parser = argparse.ArgumentParser()
    compare.add_command(parser.add_subparsers())
    assert parser.parse_args(["compare", "base", "data"]).workers == 1

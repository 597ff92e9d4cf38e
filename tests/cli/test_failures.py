"""Whatever goes wrong gives one clear line and exit code 2, and leaves what was there before as it was."""

import dataclasses
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from own_data import contents, pretrain_tiny, rows, write_csv

from minitune import cli
from minitune.data.sources import load
from minitune.data.tokenizer import Tokenizer


def fails(capsys, *arguments):
    """The one line that a command ends with."""
    assert cli.main([str(argument) for argument in arguments]) == 2
    lines = [line for line in capsys.readouterr().err.replace("\r", "\n").splitlines() if line.startswith("minitune ")]
    assert len(lines) == 1
    return lines[0]


# ---- Checkpoints, bases, vocabularies --------------------------------------------------------------------------------

@pytest.mark.parametrize("damage", ["truncated", "bit flipped", "emptied"])
def test_a_damaged_checkpoint(damage, run_folder, capsys):
    older, newest = sorted((run_folder / "checkpoints").iterdir())
    content = bytearray(newest.read_bytes())
    if damage == "bit flipped":
        content[len(content) // 2] ^= 16
    newest.write_bytes({"truncated": content[:-100], "emptied": b""}.get(damage, bytes(content)))
    before = contents(run_folder)
    assert newest.name in (line := fails(capsys, "finetune", "--resume", "--out", run_folder))
    assert "damaged" in line or "not a whole safetensors file" in line
    assert contents(run_folder) == before


def test_another_base(run_folder, capsys):
    base, before = run_folder.parent / "base", contents(run_folder)
    shutil.rmtree(base)
    pretrain_tiny(base, seed=9)
    assert "is it another base model?" in fails(capsys, "finetune", "--resume", "--out", run_folder)
    assert contents(run_folder) == before


def test_another_vocabulary(run_folder, base, table, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(base, other)
    Tokenizer.train(["a quite different vocabulary, and a larger one too, for a model that has only few rows"] * 99, 330).save(
        other / "tokenizer.json")
    line = fails(capsys, "finetune", table, "--base", other, "--out", tmp_path / "new")
    assert "tokenizer" in line and not (tmp_path / "new").exists()
    before = contents(run_folder)               # a vocabulary of the right size that is not the base's gives other rows
    Tokenizer.train(["bark moss tree leaf boat shell wave tide " * 9], 280).save(run_folder.parent / "base/tokenizer.json")
    assert "training data was" in fails(capsys, "finetune", "--resume", "--out", run_folder)
    assert contents(run_folder) == before


def test_another_table_than_the_run_was_begun_with(run_folder, capsys):
    write_csv(run_folder.parent / "places.csv", rows(40, seed=7))
    before = contents(run_folder)
    assert "training data was" in fails(capsys, "finetune", "--resume", "--out", run_folder)
    assert contents(run_folder) == before


@pytest.mark.parametrize("file, content, expected", [
    ("model.safetensors", b"half a fi", "not a whole safetensors file"), ("config.json", b'{"n_layer": ', "not valid JSON"),
    ("tokenizer.json", b"{}", "tokenizer"), ("model.safetensors", None, "is missing")])
def test_a_damaged_base(file, content, expected, base, table, tmp_path, capsys):
    other = tmp_path / "other"
    shutil.copytree(base, other)
    (other / file).unlink() if content is None else (other / file).write_bytes(content)
    line = fails(capsys, "finetune", table, "--base", other, "--out", tmp_path / "new")
    assert expected in line and file in line and not (tmp_path / "new").exists()


# ---- Files of one's own ----------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, content, expected", [
    ("empty.csv", b"", "empty"), ("header.csv", b"text,label\n", "header"), ("binary.csv", b"text,label\n\x00,a\n", "binary"),
    ("book.csv", b"PK\x03\x04" + bytes(40), "xlsx"), ("latin.csv", "text,label\ncaf\xe9,a\nb,b\n".encode("latin-1"), "latin-1"),
    ("quote.csv", b'text,label\n"never closed,a\n' + b"b,b\n" * 9, "quote"),
    ("huge.csv", b"text,label\n" + b"x" * 11_000_000 + b",a\nb,b\n", "huge.csv"),
    ("one.csv", b"text,label\na,b\nc,b\n", "class"), ("gap.csv", b"text,label\na,b\n,c\n", "row 3"),
    ("broken.jsonl", b'{"text": "a", "label": "b"}\n{"text": \n', "line 2"), ("nothing.txt", b" \n", "nothing.txt")])
def test_a_file_that_cannot_be_learned_from(name, content, expected, base, tmp_path, capsys):
    (tmp_path / name).write_bytes(content)
    line = fails(capsys, "finetune", tmp_path / name, "--base", base, "--out", tmp_path / "new")
    assert expected in line and name in line and len(line) < 1000 and not (tmp_path / "new").exists()


# ---- The disk, the network, the terminal -----------------------------------------------------------------------------

LIMITED = """
import resource, sys
from minitune import cli
import minitune.experiments.baseline, sklearn.linear_model, matplotlib.figure
resource.setrlimit(resource.RLIMIT_FSIZE, ({limit}, {limit}))
sys.exit(cli.main({arguments!r}))
"""


def test_a_full_disk(run_folder, tmp_path):
    """A limit on the size of a file stands for a full disk; the checkpoints of two epochs are there before."""
    (run_folder / "model/model.safetensors").unlink()
    before = contents(run_folder)
    base, table = run_folder.parent / "base", run_folder.parent / "places.csv"
    arguments = ["finetune", str(table), "--base", str(base), "--out", str(tmp_path / "new")]
    for given, places in ((["finetune", "--resume", "--out", str(run_folder)], run_folder), (arguments, tmp_path / "new")):
        code = LIMITED.format(limit=20_000, arguments=given)
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False)
        line = done.stderr.strip().replace("\r", "\n").splitlines()[-1]
        assert done.returncode == 2 and line.startswith("minitune finetune: ") and "Traceback" not in done.stderr
        assert "File too large" in line and not list(places.rglob(".*"))
    after = contents(run_folder)
    assert {file: after[file] for file in before if file.parts[0] == "checkpoints"} == {
        file: content for file, content in before.items() if file.parts[0] == "checkpoints"}


@pytest.fixture
def read_only():
    """A folder that cannot be written into; root, who may write anywhere, becomes nobody for the while."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o555)
    user = os.geteuid()
    try:
        if user == 0:
            os.seteuid(65534)
        yield folder
    finally:
        os.seteuid(user)
        folder.chmod(0o755)
        shutil.rmtree(folder)


@pytest.mark.skipif(not hasattr(os, "seteuid"), reason="needs the file permissions of Unix")
def test_a_read_only_folder(base, table, read_only, capsys, monkeypatch):
    from minitune.cli import finetune, run_folder
    from minitune.data import read
    from minitune.models import from_pretrained
    user = os.geteuid()
    if os.getuid() == 0:                        # nobody may not read root's temporary folders: read before
        os.seteuid(0)
    dataset, gpt = read(table), from_pretrained(base)
    os.seteuid(user)
    monkeypatch.setattr(run_folder, "read_data", lambda options: dataset)
    monkeypatch.setattr(finetune, "base_model", lambda folder: gpt)
    line = fails(capsys, "finetune", table, "--base", base, "--out", read_only / "run")
    assert "Permission denied" in line and str(read_only) in line and not list(read_only.iterdir())


def test_no_network(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("MINITUNE_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    source = load.__globals__["SOURCES"]["tinyshakespeare"]
    nowhere = dataclasses.replace(source, home="http://127.0.0.1:9/")       # port 9 takes no connections
    monkeypatch.setitem(load.__globals__["SOURCES"], "tinyshakespeare", nowhere)
    monkeypatch.setattr("time.sleep", lambda seconds: None)
    line = fails(capsys, "data", "tinyshakespeare")
    assert "tinyshakespeare" in line and "127.0.0.1:9" in line and not list(tmp_path.rglob("*.txt"))

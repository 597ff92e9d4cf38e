"""A tiny pre-trained base, a CSV of one's own, and a run that has ended."""

import shutil

import pytest
from own_data import pretrain_tiny, rows, write_csv

from minitune import cli


@pytest.fixture(scope="session")
def base(tmp_path_factory):
    """The folder of a tiny pre-trained GPT."""
    folder = tmp_path_factory.mktemp("base")
    pretrain_tiny(folder)
    return folder


@pytest.fixture
def table(tmp_path):
    """A CSV of 40 rows."""
    return write_csv(tmp_path / "places.csv", rows(40))


@pytest.fixture(scope="session")
def ended(base, tmp_path_factory):
    """A fine-tuning with LoRA that has ended: its folder, with a copy of the base it began from beside it."""
    folder = tmp_path_factory.mktemp("ended")
    shutil.copytree(base, folder / "base")
    write_csv(folder / "places.csv", rows(40))
    assert cli.main(["finetune", str(folder / "places.csv"), "--base", str(folder / "base"), "--out", str(folder / "run"),
                     "--epochs", "2", "--method", "lora"]) == 0
    return folder


@pytest.fixture
def run_folder(ended, tmp_path):
    """A copy of the ended run that a test may damage."""
    shutil.copytree(ended, tmp_path / "ended")
    record = tmp_path / "ended/run/run.json"
    record.write_text(record.read_text().replace(str(ended), str(tmp_path / "ended")))      # its arguments name the copy
    return tmp_path / "ended" / "run"


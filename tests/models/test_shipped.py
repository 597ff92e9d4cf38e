"""The model that comes with the package: found by its name, small, whole, and it knows English."""

import json
import shutil
from math import log

import numpy as np
import pytest
from own_data import ship

from minitune import models, train
from minitune.data import LanguageModelSet
from minitune.formats.folder import SHIPPED, read_tensors

FOLDER = SHIPPED / "minitune-base"
ENGLISH = ("The lamp had burned low, and nobody in the room had spoken for some time. At last the old man rose from his chair, "
           "went to the window, and looked out at the rain. \"It will not stop before the morning,\" he said. \"You had better "
           "stay with us to-night.\" She thanked him, but she did not take off her coat, and he saw that she was afraid.")


@pytest.fixture(scope="module")
def gpt():
    return models.from_pretrained("minitune-base")


def test_its_folder_is_whole_and_small_with_weights_of_half_precision():
    assert sorted(file.name for file in FOLDER.iterdir()) == ["README.md", "config.json", "model.safetensors",
                                                              "pretraining.json", "tokenizer.json"]
    assert sum(file.stat().st_size for file in FOLDER.iterdir()) <= 12_000_000
    assert {array.dtype for array in read_tensors(FOLDER / "model.safetensors").values()} == {np.dtype(np.float16)}


def test_it_is_read_in_float32_and_foresees_english(gpt):
    """Knowing nothing costs log(8192) = 9 nats a token; knowing how often each token occurs saves about two of them."""
    assert {p.dtype for p in gpt.parameters()} == {np.dtype(np.float32)}
    ids = gpt.tokenizer.frame(gpt.tokenizer.encode(ENGLISH))
    loss = train.evaluate(gpt, LanguageModelSet([ids], len(ids)))["loss"]
    assert loss < log(gpt.config.vocab_size) - 3 and len(ids) < len(ENGLISH.split()) * 1.8
    shuffled = [*np.random.default_rng(0).permutation(ids[:-1]), ids[-1]]
    assert train.evaluate(gpt, LanguageModelSet([shuffled], len(ids)))["loss"] > loss + 1


def test_its_card_tells_what_its_record_says(gpt):
    card, record = (FOLDER / "README.md").read_text(encoding="utf-8"), json.loads((FOLDER / "pretraining.json").read_text())
    assert record["parameters"] == gpt.num_parameters() and f"{record['tokens_read']:,} tokens" in card
    assert all(f"| {row['title']} | {row['tokens']:,} |" in card for row in record["measured"])


def test_a_folder_of_that_name_in_the_working_directory_comes_first(tmp_path, monkeypatch):
    own = models.GPT(models.GPTConfig(20, 8, 1, 1, 8))
    own.save_pretrained(tmp_path / "minitune-base")
    monkeypatch.chdir(tmp_path)
    assert models.from_pretrained("minitune-base").config == own.config
    shutil.rmtree("minitune-base")
    (tmp_path / "minitune-base").write_text("a file is no folder")
    assert models.from_pretrained("minitune-base").config.vocab_size > 20


@pytest.mark.parametrize("name", ["minitune-bse", "Minitune-base", "shipped", "../shipped/minitune-base", "minitune-base/model",
                                  "runs/minitune-base"])
def test_another_name_is_told_with_those_that_there_are(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match="there is no folder .*or a model that comes with minitune: minitune-base$"):
        models.from_pretrained(name)


def test_what_is_shipped_is_whatever_has_a_config(tmp_path, monkeypatch):
    models.GPT(models.GPTConfig(20, 8, 1, 1, 8)).save_pretrained(tmp_path / "small")
    (tmp_path / "shipped" / "half").mkdir(parents=True)
    ship(tmp_path / "small", tmp_path / "shipped", monkeypatch)
    assert models.from_pretrained("minitune-base").config.vocab_size == 20
    with pytest.raises(FileNotFoundError, match="comes with minitune: minitune-base$"):
        models.from_pretrained("half")

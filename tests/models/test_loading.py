"""from_pretrained: the tokenizer beside the model, and one that is not the model's."""

import json

import pytest

from minitune import models
from minitune.data import Tokenizer


@pytest.mark.parametrize("kind", ["gpt", "classifier"])
@pytest.mark.parametrize("rows", [265, 266])
def test_a_tokenizer_with_as_many_tokens_as_the_embedding_has_rows_or_fewer_is_read(kind, rows, tmp_path):
    assert saved(kind, rows, tmp_path).tokenizer.vocab_size == 265


@pytest.mark.parametrize("kind", ["gpt", "classifier"])
def test_a_tokenizer_with_more_tokens_than_the_embedding_has_rows_is_refused(kind, tmp_path):
    with pytest.raises(ValueError, match="tokenizer.json has 265 tokens, the model's embedding 264 rows. Is it another"):
        saved(kind, 264, tmp_path)


def saved(kind, vocab_size, folder):
    """A model with so many rows in its embedding and a tokenizer of 265 tokens, written and read."""
    model = models.GPT(models.GPTConfig(vocab_size, 8, 1, 1, 8))
    if kind == "classifier":
        model = models.Classifier(model, ["no", "yes"])
    model.tokenizer = Tokenizer.train(["low lower lowest"] * 10, vocab_size=265)
    model.save_pretrained(folder)
    return models.from_pretrained(folder)


def test_the_start_token_is_told_where_there_is_one(tmp_path):
    for masked in False, True:
        model = models.BERT(models.BERTConfig(270, 8, 1, 1, 4))
        model.tokenizer = Tokenizer.train(["low lower lowest"] * 10, vocab_size=267, masked=masked)
        model.save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        loaded = models.from_pretrained(tmp_path).tokenizer
        assert config["bos_token_id"] == (loaded.start if masked else loaded.end)
        assert (config["eos_token_id"], config["pad_token_id"]) == (loaded.end, loaded.pad)


def test_a_tokenizer_beside_images_is_left_alone(tmp_path):
    models.CNN(models.CNNConfig(8, widths=(4,))).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    assert models.from_pretrained(tmp_path).tokenizer is None

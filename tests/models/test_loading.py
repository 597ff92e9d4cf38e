"""from_pretrained: the tokenizer beside the model, and one that is not the model's."""

import json

import pytest
import tokenizers

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


def written(folder, special, entries, rows=300, ordinary=()):
    """A folder with a model of so many rows, a tokenizer with these special tokens first, and entries of config.json."""
    models.GPT(models.GPTConfig(rows, 8, 1, 1, 4)).save_pretrained(folder)
    trainer = tokenizers.trainers.BpeTrainer(vocab_size=8 + len(special), special_tokens=list(special), show_progress=False)
    rules = tokenizers.Tokenizer(tokenizers.models.BPE())
    rules.train_from_iterator(["abcdefgh"], trainer)
    rules.add_special_tokens(["<extra>"])
    rules.add_tokens(list(ordinary))
    rules.save(str(folder / "tokenizer.json"))
    file = folder / "config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))
    return folder


LLAMA2, LLAMA3 = ("<unk>", "<s>", "</s>"), ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>")
BERT = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


@pytest.mark.parametrize("special, entries, start, end, pad", [
    (LLAMA2, {"bos_token_id": 1, "eos_token_id": 2}, 1, 2, None), (LLAMA2, {}, 1, 2, None),
    (("<unk>", "<s>", "<|im_end|>"), {"bos_token_id": 1, "eos_token_id": 2}, 1, 2, None),
    ((*LLAMA2, "<|endoftext|>"), {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}, 1, 2, 0),
    (LLAMA3, {"bos_token_id": 0, "eos_token_id": [1, 2]}, 0, 1, None), (LLAMA3, {"eos_token_id": 2}, None, 2, None),
    (BERT, {"pad_token_id": 0}, 2, 3, 0), (BERT, {"eos_token_id": None, "pad_token_id": None}, 2, 3, 0),
    (("<|endoftext|>",), {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}, None, 0, None),
    (("<|endoftext|>",), {"bos_token_id": 50256, "eos_token_id": 50256}, None, 0, None),        # what a class has by default
    (("<|endoftext|>",), {"bos_token_id": "a", "eos_token_id": [], "pad_token_id": True}, None, 0, None)])
def test_special_tokens_are_those_of_config_json_or_else_known_by_their_spelling(tmp_path, special, entries, start, end, pad):
    tokenizer = models.from_pretrained(written(tmp_path, special, entries)).tokenizer
    assert (tokenizer.start, tokenizer.end, tokenizer.pad) == (start, end, pad)
    assert tokenizer.mask == (4 if special is BERT else None)
    assert tokenizer.frame([7]) == [*[start] * (start is not None), 7, end]


def test_a_tokenizer_whose_end_nothing_tells_is_refused(tmp_path):
    with pytest.raises(ValueError, match="in a model's folder, eos_token_id in config.json"):
        models.from_pretrained(written(tmp_path, ("<unk>",), {"eos_token_id": 7}))


@pytest.mark.parametrize("special, entries, expected", [
    (("<|endoftext|>",), {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}, (0, 0, 0)),
    (LLAMA3, {"bos_token_id": 0, "eos_token_id": [1, 2], "pad_token_id": 2}, (0, [1, 2], 2)),
    (LLAMA2, {"bos_token_id": 1, "eos_token_id": 2}, (1, 2, None)), (BERT, {"pad_token_id": 0}, (2, 3, 0))])
@pytest.mark.parametrize("head", [False, True])
def test_special_ids_that_were_read_are_written_again(tmp_path, special, entries, expected, head):
    model = models.from_pretrained(written(tmp_path, special, entries))
    if head:
        model = models.Classifier(model, ["no", "yes"])
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert tuple(config[key] for key in ("bos_token_id", "eos_token_id", "pad_token_id")) == expected


def test_special_ids_stay_without_a_tokenizer(tmp_path):
    written(tmp_path, ("<|endoftext|>",), {"pad_token_id": 7, "eos_token_id": 50256}).joinpath("tokenizer.json").unlink()
    models.from_pretrained(tmp_path).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    assert (config["bos_token_id"], config["eos_token_id"], config["pad_token_id"]) == (None, 50256, 7)


def test_special_tokens_that_the_embedding_has_no_row_for_are_none(tmp_path):
    """Eight letters and three special tokens are 11 rows; <extra>, added later for padding, has none."""
    tokenizer = models.from_pretrained(written(tmp_path, LLAMA2, {"pad_token_id": 11}, rows=11)).tokenizer
    assert (tokenizer.vocab_size, tokenizer.end, tokenizer.pad) == (12, 2, None)
    tokenizer = models.from_pretrained(written(tmp_path, LLAMA2, {"pad_token_id": 11}, rows=12)).tokenizer
    assert tokenizer.pad == 11


def test_an_ordinary_token_or_an_end_that_the_embedding_has_no_row_for_is_refused(tmp_path):
    with pytest.raises(ValueError, match="tokenizer.json has 13 tokens, the model's embedding 12 rows"):
        models.from_pretrained(written(tmp_path, LLAMA2, {}, rows=12, ordinary=["word"]))
    with pytest.raises(ValueError, match="tokenizer.json has 12 tokens, the model's embedding 11 rows"):
        models.from_pretrained(written(tmp_path, LLAMA2, {"eos_token_id": 11}, rows=11))


def test_a_tokenizer_beside_images_is_left_alone(tmp_path):
    models.CNN(models.CNNConfig(8, widths=(4,))).save_pretrained(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    assert models.from_pretrained(tmp_path).tokenizer is None


# ---- Reading backwards -----------------------------------------------------------------------------------------------

def reading_backward(model):
    model.tokenizer = Tokenizer.train(["low lower lowest"] * 10, vocab_size=265, masked=isinstance(model, models.BERT))
    model.tokenizer.backward = True
    return model


@pytest.mark.parametrize("make", [
    lambda: models.GPT(models.GPTConfig(265, 8, 1, 1, 8)), lambda: models.Llama(models.LlamaConfig(265, 8, 1, 1, 8)),
    lambda: models.BERT(models.BERTConfig(265, 8, 1, 1, 8)),
    lambda: models.AWDLSTM(models.AWDLSTMConfig(265, n_embd=8, n_hidden=8, n_layer=1))])
@pytest.mark.parametrize("head", [False, True])
def test_a_folder_keeps_that_its_model_reads_backwards(make, head, tmp_path):
    model = reading_backward(make())
    if head:
        model = models.Classifier(model, ["no", "yes"])
    for _ in range(2):                          # what was read is written again
        model.save_pretrained(tmp_path)
        assert json.loads((tmp_path / "config.json").read_text())["reads_backward"] is True
        model = models.from_pretrained(tmp_path)
        assert model.tokenizer.backward
    ids = model.tokenizer.encode("lowest low")
    model.tokenizer.backward = False
    assert ids == model.tokenizer.encode("lowest low")[::-1] != ids[::-1]
    model.save_pretrained(tmp_path)
    assert "reads_backward" not in json.loads((tmp_path / "config.json").read_text())
    assert not models.from_pretrained(tmp_path).tokenizer.backward


def test_a_folder_that_does_not_say_reads_forward_and_one_that_says_something_else_is_refused(tmp_path):
    assert "reads_backward" not in json.loads((written(tmp_path, LLAMA2, {}) / "config.json").read_text())
    assert not models.from_pretrained(tmp_path).tokenizer.backward
    assert not models.from_pretrained(written(tmp_path, LLAMA2, {"reads_backward": False})).tokenizer.backward
    for odd in ("yes", 1, None):
        with pytest.raises(ValueError, match="reads_backward must be true or false, got"):
            models.from_pretrained(written(tmp_path, LLAMA2, {"reads_backward": odd}))


def test_ids_that_a_backward_model_writes_decode_in_reading_order():
    """Each new token stands before all that were there: the new ids are a text of their own, from its last token on."""
    model = reading_backward(models.GPT(models.GPTConfig(265, 8, 1, 1, 8)))
    tokenizer = model.tokenizer
    banned = [i for i, text in enumerate(tokenizer.spell(range(265))) if i in tokenizer.special or "\ufffd" in text]
    (new,) = model.generate_ids([tokenizer.encode("lowest")], 6, banned=banned)
    assert len(set(new)) > 1 and tokenizer.decode(new) == "".join(tokenizer.spell(new)[::-1])

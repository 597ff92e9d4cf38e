"""Tokenizer: nothing is lost, nothing is added, and files come back as they went."""

import copy
import json
import pickle
import random

import numpy as np
import pytest

from minitune.data import ClassificationSet, LanguageModelSet, Split
from minitune.data.tokenizer import END, PAD, Tokenizer

TEXTS = ["the cat sat on the mat", "the dog sat on the log", "a café, naïve façade"] * 5


@pytest.fixture(scope="module")
def tokenizer():
    return Tokenizer.train(TEXTS, vocab_size=300)


def random_texts(count=300):
    """Texts of characters from all over Unicode, surrogates apart."""
    draw = random.Random(0)
    ranges = [(0, 0x80), (0x80, 0x800), (0x800, 0xD800), (0xE000, 0x10000), (0x10000, 0x110000)]
    return ["".join(chr(draw.randrange(*draw.choice(ranges))) for _ in range(draw.randrange(12))) for _ in range(count)]


@pytest.mark.parametrize(
    "text",
    [
        "",
        " ",
        "  the",
        "the  ",
        "\n\n\t \r\n",
        "\x00",
        "e\u0301 \u00e9",
        "\ufeff\ufffd\u2028",
        "👩\u200d🚀",
        "it's 're\u00a0",
    ],
)
def test_round_trip_of_odd_texts(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_round_trip_of_random_unicode(tokenizer):
    texts = random_texts()
    assert [tokenizer.decode(ids) for ids in tokenizer.encode_batch(texts)] == texts


def test_encode_merges_and_adds_nothing(tokenizer):
    ids = tokenizer.encode("the cat")
    assert 0 < len(ids) < len("the cat")
    assert tokenizer.end not in ids and tokenizer.pad not in ids
    assert tokenizer.encode_batch(["the cat", ""]) == [ids, []]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))])
def test_spelled_special_tokens_are_plain_text(tokenizer, copied):
    text = f"the {END}{PAD} cat"
    for each in (tokenizer, copied(tokenizer)):
        ids = each.encode(text)
        assert each.end not in ids and each.pad not in ids
        assert each.decode(ids) == text


def test_decode_leaves_special_tokens_out(tokenizer):
    assert tokenizer.end != tokenizer.pad
    ids = [*tokenizer.encode("the cat"), tokenizer.end, tokenizer.pad, tokenizer.pad]
    assert tokenizer.decode(ids) == "the cat"


def test_decode_of_half_a_character_is_the_replacement_character(tokenizer):
    assert tokenizer.decode(tokenizer.encode("👩")[:1]) == "\ufffd"


def test_training_is_deterministic_and_keeps_to_its_size():
    first, second = (Tokenizer.train(iter(TEXTS), vocab_size=290) for _ in range(2))
    assert first._rules.to_str() == second._rules.to_str()
    assert first.vocab_size == 290


def test_vocab_size_too_small():
    assert Tokenizer.train([], vocab_size=258).vocab_size == 258
    with pytest.raises(ValueError, match="at least 258.*got 257"):
        Tokenizer.train(TEXTS, vocab_size=257)


def test_one_string_is_no_list_of_texts(tokenizer):
    with pytest.raises(TypeError, match=r"got one str\. Write \[text\]"):
        Tokenizer.train("the cat", vocab_size=300)
    with pytest.raises(TypeError, match=r"got one str\. Write \[text\]"):
        tokenizer.encode_batch("the cat")


@pytest.mark.parametrize(("text", "named"), [(5, "got 5"), (None, "got None"), ("\ud800", "half a surrogate pair")])
def test_what_is_no_text(tokenizer, text, named):
    with pytest.raises(TypeError, match=named):
        tokenizer.encode(text)


def test_decode_of_an_id_outside_the_vocabulary(tokenizer):
    for odd in (tokenizer.vocab_size, -1):
        with pytest.raises(ValueError, match="another tokenizer"):
            tokenizer.decode([5, odd])


def test_save_and_load(tokenizer, tmp_path):
    file = tmp_path / "tokenizer.json"
    file.write_text("an older file")
    tokenizer.save(file)
    loaded = Tokenizer.load(str(file))
    assert (loaded.vocab_size, loaded.end, loaded.pad) == (tokenizer.vocab_size, tokenizer.end, tokenizer.pad)
    texts = [*random_texts(20), f"the {END} cat"]
    assert loaded.encode_batch(texts) == tokenizer.encode_batch(texts)
    assert [each.name for each in tmp_path.iterdir()] == ["tokenizer.json"]


def test_a_failed_save_keeps_the_old_file(tokenizer, tmp_path, monkeypatch):
    file = tmp_path / "tokenizer.json"
    file.write_text("an older file")

    def full_disk(*_):
        raise OSError("no space left")

    monkeypatch.setattr("pathlib.Path.replace", full_disk)
    with pytest.raises(OSError, match="no space"):
        tokenizer.save(file)
    assert file.read_text() == "an older file"
    assert len(list(tmp_path.iterdir())) == 1


def stored(tokenizer, tmp_path, change):
    """The file of `tokenizer` after `change` of its JSON."""
    content = json.loads(tokenizer._rules.to_str())
    change(content)
    file = tmp_path / "tokenizer.json"
    file.write_text(json.dumps(content))
    return file


def test_load_without_a_padding_token_as_gpt2(tokenizer, tmp_path):
    def drop_padding(content):
        content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] != PAD]
        content["model"]["vocab"]["<|unused|>"] = content["model"]["vocab"].pop(PAD)

    loaded = Tokenizer.load(stored(tokenizer, tmp_path, drop_padding))
    assert loaded.pad is None and loaded.end == tokenizer.end
    assert loaded.encode("the cat") == tokenizer.encode("the cat")


def test_load_under_other_names_and_without_an_end(tokenizer, tmp_path):
    def rename_end(content):
        content["added_tokens"][0]["content"] = "<fin>"
        content["model"]["vocab"]["<fin>"] = content["model"]["vocab"].pop(END)

    file = stored(tokenizer, tmp_path, rename_end)
    assert Tokenizer.load(file, end="<fin>").end == tokenizer.end
    with pytest.raises(ValueError, match=r"has none.*end=\.\.\."):
        Tokenizer.load(file)
    with pytest.raises(ValueError, match="two tokens"):
        Tokenizer.load(file, end="<fin>", pad="<fin>")


def test_load_takes_ids_of_special_tokens(tokenizer, tmp_path):
    tokenizer.save(tmp_path / "tokenizer.json")
    loaded = Tokenizer.load(tmp_path / "tokenizer.json", end=1, pad=0, start=0)
    assert (loaded.end, loaded.pad, loaded.start) == (1, 0, 0)
    loaded = Tokenizer.load(tmp_path / "tokenizer.json", end=7, pad=299, start=50256)       # none of them is one
    assert (loaded.end, loaded.pad, loaded.start) == (tokenizer.end, tokenizer.pad, None)


def test_the_largest_id_is_no_special_tokens(tokenizer, tmp_path):
    size = tokenizer.vocab_size
    assert tokenizer.largest_id == size - 1

    def add(content):
        content["added_tokens"] += [dict(content["added_tokens"][0], content=name, id=size + i, special=special)
                                    for i, (name, special) in enumerate([("word", False), ("<later>", True)])]

    loaded = Tokenizer.load(stored(tokenizer, tmp_path, add))
    assert (loaded.largest_id, loaded.vocab_size) == (size, size + 2)
    assert loaded.encode("word") == [size] and size + 1 not in loaded.encode("<later>")


def test_load_drops_truncation_and_padding(tokenizer, tmp_path):
    def add(content):
        content["truncation"] = {"direction": "Right", "max_length": 2, "strategy": "LongestFirst", "stride": 0}
        content["padding"] = {
            "strategy": {"Fixed": 64}, "direction": "Right", "pad_to_multiple_of": None,
            "pad_id": 1, "pad_type_id": 0, "pad_token": PAD,
        }  # fmt: skip

    loaded = Tokenizer.load(stored(tokenizer, tmp_path, add))
    assert loaded.encode("the cat sat on a log") == tokenizer.encode("the cat sat on a log")


def test_load_of_something_else(tmp_path):
    (tmp_path / "vocab.json").write_text('{"a": 1}')
    with pytest.raises(ValueError, match=r"expected a Hugging Face tokenizer\.json"):
        Tokenizer.load(tmp_path / "vocab.json")
    with pytest.raises(FileNotFoundError):
        Tokenizer.load(tmp_path / "missing.json")


@pytest.mark.parametrize("end, start, mask", [("[SEP]", "[CLS]", "[MASK]"), ("</s>", "<s>", None),
                                              ("<|end_of_text|>", "<|begin_of_text|>", None)])
def test_load_knows_the_special_tokens_of_other_families(tokenizer, tmp_path, end, start, mask):
    def rename(content):
        for old, new in zip((END, PAD), (end, start)):
            content["added_tokens"][(END, PAD).index(old)]["content"] = new
            content["model"]["vocab"][new] = content["model"]["vocab"].pop(old)
        if mask:
            content["model"]["vocab"][mask] = content["model"]["vocab"].pop("z")
            content["added_tokens"].append(dict(content["added_tokens"][0], content=mask, id=content["model"]["vocab"][mask]))

    loaded = Tokenizer.load(stored(tokenizer, tmp_path, rename))
    assert (loaded.end, loaded.start) == (tokenizer.end, tokenizer.pad) and (loaded.mask is None) == (mask is None)
    assert loaded.frame([7, 8]) == [loaded.start, 7, 8, loaded.end]


def test_a_tokenizer_for_masked_models_has_a_start_and_a_mask_token():
    masked = Tokenizer.train(["to be or not to be"] * 9, vocab_size=264, masked=True)
    assert (masked.end, masked.pad, masked.start, masked.mask) == (0, 1, 2, 3)
    assert masked.frame([9]) == [2, 9, 0] and masked.decode([2, *masked.encode("to be"), 3, 0]) == "to be"
    assert Tokenizer.train(["to be or not to be"] * 9, vocab_size=264).frame([9]) == [9, 0]


# ---- Backward --------------------------------------------------------------------------------------------------------

def reading_backward(tokenizer):
    backward = copy.copy(tokenizer)
    backward.backward = True
    return backward


def test_a_backward_tokenizer_gives_ids_from_the_last_to_the_first_and_the_text_back(tokenizer):
    backward, texts = reading_backward(tokenizer), [*TEXTS[:3], "", " ", "e\u0301 👩\u200d🚀", *random_texts(50)]
    assert backward.encode_batch(texts) == [ids[::-1] for ids in tokenizer.encode_batch(texts)]
    assert [backward.decode(backward.encode(text)) for text in texts] == texts
    assert backward.decode(iter(backward.encode("the cat"))) == "the cat"
    assert backward.decode(backward.frame(backward.encode("the cat"))) == "the cat"
    assert backward.spell(backward.encode("the cat")) == tokenizer.spell(tokenizer.encode("the cat"))[::-1]
    assert not tokenizer.backward and tokenizer.encode("the cat") != backward.encode("the cat")
    assert repr(backward).endswith("backward=True)") and "backward" not in repr(tokenizer)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda made: pickle.loads(pickle.dumps(made))])
def test_a_copy_of_a_backward_tokenizer_reads_backwards(tokenizer, copied):
    backward = reading_backward(tokenizer)
    assert copied(backward).encode("the cat sat") == backward.encode("the cat sat")


@pytest.mark.parametrize("masked", [False, True])
def test_sets_made_with_a_backward_tokenizer_hold_reversed_documents_in_their_frame(masked):
    """The start token comes first and the end token last, as a model that reads on expects."""
    tokenizer, texts = Tokenizer.train(TEXTS, 300, masked=masked), ["the cat sat on the mat", "a dog"]
    backward = reading_backward(tokenizer)
    documents = [tokenizer.frame(tokenizer.encode(text)[::-1]) for text in texts]
    assert documents[0][0] == (tokenizer.start if masked else tokenizer.encode(" mat")[-1])
    assert documents[0][-1] == tokenizer.end
    row = LanguageModelSet.from_texts(texts, backward, sum(map(len, documents))).batch(np.array([0]))
    assert row.ids[0].tolist() == documents[0] + documents[1]
    assert row.targets[0, : len(documents[0]) - 1].tolist() == documents[0][1:]
    labelled = ClassificationSet.from_split(Split(texts, np.array([0, 1])), backward, 64)
    assert [document.tolist() for document in labelled.documents] == documents
    cut = ClassificationSet.from_split(Split(texts, np.array([0, 1])), backward, 4)     # it has read the text's end
    kept = 2 if masked else 3
    assert cut.documents[0].tolist() == tokenizer.frame(tokenizer.encode(texts[0])[::-1][:kept]) and cut.truncated == [0]


def test_the_vocabulary_spells_bytes_as_letters(tokenizer):
    ids = tokenizer.vocabulary
    assert sorted(ids.values()) == list(range(tokenizer.vocab_size)) and ids[END] == tokenizer.end
    assert tokenizer.encode(" ") == [ids["Ġ"]] and tokenizer.spell([ids["Ġ"]]) == [" "]

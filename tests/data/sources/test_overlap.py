"""Overlap: what of a test set stands in the texts learned from, as a whole or by its word sequences, and nothing else."""

import numpy as np
import pytest

from minitune.data import Split, overlap
from minitune.data.sources.overlap import without

WORDS = [f"word{i}" for i in range(400)]


def sentence(start, count):
    return " ".join(WORDS[start : start + count])


def test_equal_texts_are_found_whatever_their_case_and_white_space():
    found = overlap(["A film  to\nsee.", "dull"], ["a FILM to see.", "a film to see", "Dull ", "not dull", "STRASSE"])
    assert found.equal.tolist() == [True, False, True, False, False] and found.rows == [0, 2] and found.others == [1, 3, 4]
    assert overlap(["Straße"], ["STRASSE"]).rows == [0]


def test_the_share_is_that_of_sequences_of_13_words():
    """40 words have 28 sequences; of the first 26 words, 14 of them."""
    test = [sentence(0, 40), sentence(100, 12), sentence(200, 13)]
    found = overlap(["Before, " + sentence(0, 26) + " after.", sentence(205, 13), sentence(98, 15)], test)
    assert found.shares.tolist() == [14 / 28, 0, 0] and found.short == 1
    assert found.rows == [0] and overlap([sentence(0, 25)], test).rows == []
    assert overlap([sentence(0, 25)], test, share=13 / 28).rows == [0]
    assert overlap(["", sentence(198, 15)], test).shares.tolist() == [0, 0, 1]


def test_punctuation_and_case_of_words_make_no_difference_but_their_order_does():
    test = [sentence(0, 13)]
    assert overlap([", ".join(WORDS[:13]).upper() + "!"], test).rows == [0]
    assert overlap([" ".join(WORDS[12::-1])], test).shares.tolist() == [0]
    swapped = [WORDS[1], WORDS[0], *WORDS[2:13]]
    assert overlap([" ".join(swapped)], test).shares.tolist() == [0]


def test_no_sequence_goes_over_the_end_of_a_text():
    assert overlap([sentence(0, 7), sentence(7, 6)], [sentence(0, 13)]).shares.tolist() == [0]
    assert overlap([sentence(0, 13)], [sentence(0, 7), sentence(7, 6)]).shares.tolist() == [0, 0]


def test_repeated_sequences_and_repeated_texts_each_count():
    test = [" ".join(["la"] * 20), sentence(0, 20), sentence(0, 20)]
    assert overlap([" ".join(["la"] * 13), sentence(0, 19)], test).shares.tolist() == [1, 7 / 8, 7 / 8]


def test_shares_agree_with_sets_of_tuples():
    draw = np.random.default_rng(0)
    texts, test = ([" ".join(f"w{i}" for i in draw.integers(0, 3, draw.integers(0, 60))) for _ in range(30)] for _ in range(2))

    def sequences(text):
        words = text.split()
        return [tuple(words[i : i + 4]) for i in range(len(words) - 3)]

    known = {sequence for text in texts[:2] for sequence in sequences(text)}
    expected = [np.mean([s in known for s in sequences(text)]) if sequences(text) else 0 for text in test]
    assert len(set(expected)) > 5
    assert overlap(texts[:2], test, words=4).shares.tolist() == expected


def test_texts_are_read_once_as_they_come_and_what_is_split_between_lookups_is_found(monkeypatch):
    texts = [sentence(i, 20) for i in range(0, 300, 20)]
    whole = overlap(texts, [sentence(105, 14), sentence(100, 20), sentence(315, 13)])
    monkeypatch.setattr("minitune.data.sources.overlap.CHUNK", 30)      # words: two texts and their ends
    pieces = overlap(iter(texts), [sentence(105, 14), sentence(100, 20), sentence(315, 13)])
    assert pieces.rows == whole.rows == [0, 1] and pieces.read == whole.read == 15
    assert pieces.shares.tolist() == whole.shares.tolist() == [1, 1, 0] and pieces.equal.tolist() == [False, True, False]


def test_texts_without_those_that_are_equal_to_others():
    texts = ["A film", "dull", "dull", "Dull", "b"]
    assert without(iter(texts), iter(["a  FILM\n"])) == ["dull", "Dull", "b"] and without(texts, ["DULL"]) == ["A film", "b"]
    assert without([], ["a"]) == [] and without(["a"], []) == ["a"]


def test_found_texts_can_be_left_out():
    test = Split(["a film", "dull", "fine"], np.array([1, 0, 1]))
    kept = test.subset(overlap(["Dull"], test.texts).others)
    assert kept.texts == ["a film", "fine"] and kept.labels.tolist() == [1, 1]


def test_it_prints_one_sentence():
    found = overlap([sentence(0, 30), "dull"], [sentence(0, 20), "Dull", "fine", sentence(100, 20)])
    assert str(found) == ("2 of 4 texts (50.00%) occur in the 2 searched: 1 as a whole, 1 more by at least 50% of their "
                          "sequences of 13 words; 2 are too short for that and were compared as wholes.")
    assert str(overlap([], [])) == ("0 of 0 texts (0.00%) occur in the 0 searched: 0 as a whole, 0 more by at least 50% of "
                                    "their sequences of 13 words.")


def test_what_is_no_list_of_texts_or_no_share():
    for wrong in (("a text", ["a"]), (["a"], "a text"), (["a"], Split(["a"]))):
        with pytest.raises(TypeError, match="expected a list of texts, got one (str|Split)"):
            overlap(*wrong)
    for settings in ({"share": 0}, {"share": 1.5}, {"words": 0}):
        with pytest.raises(ValueError, match="share must be above 0"):
            overlap(["a"], ["a"], **settings)

"""Sets with a label for every token, with choices between texts, and with texts of many rows."""

import numpy as np
import pytest

from minitune.data import ClassificationSet, LongTextSet, MultipleChoiceSet, Split, TokenClassificationSet, Tokenizer
from minitune.ops import IGNORE


@pytest.mark.parametrize("causal", [False, True])
def test_labels_stand_where_their_tokens_stand(causal):
    dataset = TokenClassificationSet([[5, 6, 7], [8]], [[0, IGNORE, 1], [1]], 8, causal)
    batch = dataset.batch(np.array([1, 0]))
    assert batch.ids.tolist() == [[8, 0, 0], [5, 6, 7]]
    assert batch.targets.tolist() == [[1, IGNORE, IGNORE], [0, IGNORE, 1]]
    assert batch.valid.tolist() == [[True, False, False], [True] * 3]
    assert batch.last[1].tolist() == ([0, 1, 2] if causal else [2, 2, 2])
    assert (len(dataset), dataset.largest_id, dataset.truncated) == (2, 8, [])


def test_a_long_document_is_cut_with_its_labels():
    dataset = TokenClassificationSet([[5, 6, 7], [8]], [[0, 1, 1], [1]], 2)
    assert dataset.truncated == [0] and dataset.batch(np.array([0])).targets.tolist() == [[0, 1]]
    assert dataset.fingerprint != TokenClassificationSet([[5, 6, 7], [8]], [[0, 0, 1], [1]], 2).fingerprint


@pytest.mark.parametrize("documents, labels", [([[1, 2]], [[0]]), ([[1], [2]], [[0]]), ([[]], [[]])])
def test_labels_must_fit_their_documents(documents, labels):
    with pytest.raises(ValueError, match="TokenClassificationSet: expected a label for each token"):
        TokenClassificationSet(documents, labels, 8)


@pytest.mark.parametrize("causal", [False, True])
def test_the_choices_of_a_question_stand_one_below_the_other(causal):
    dataset = MultipleChoiceSet([[[1, 2], [1, 3, 3]], [[4], [5]]], [1, 0], 3, causal, [[[0, 1], [0, 1, 1]], [[0], [0]]])
    batch = dataset.batch(np.array([1, 0]))
    assert batch.ids.tolist() == [[4, 0, 0], [5, 0, 0], [1, 2, 0], [1, 3, 3]]
    assert batch.segments.tolist() == [[0, 0, 0], [0, 0, 0], [0, 1, 0], [0, 1, 1]]
    assert batch.targets.tolist() == [0, 1] and batch.last[3].tolist() == ([0, 1, 2] if causal else [2, 2, 2])
    assert (len(dataset), dataset.choices, dataset.largest_id) == (2, 2, 5)


@pytest.mark.parametrize("questions, answers, message", [
    ([[[1], [2]], [[3]]], [0, 0], "the same number of choices"), ([[[1], []]], [0], "none of them empty"),
    ([[[1], [2]]], [0, 1], r"and answers \(2,\)"), ([[[1], [2]]], [2], r"answers must be 0 \.\. 1, got 2 at question 0"),
])
def test_questions_that_make_no_choice_are_told(questions, answers, message):
    with pytest.raises(ValueError, match=message):
        MultipleChoiceSet(questions, answers, 8)


def test_what_is_too_long_and_segments_that_do_not_fit_are_told():
    with pytest.raises(ValueError, match="the longest choice has 3 tokens, block_size is 2. Shorten the questions, not"):
        MultipleChoiceSet([[[1, 2], [1, 3, 3]]], [0], 2)
    with pytest.raises(ValueError, match="segments must hold a number for each token of each choice"):
        MultipleChoiceSet([[[1, 2], [1, 3]]], [0], 2, segments=[[[0, 1]]])
    one, other = (MultipleChoiceSet([[[1, 2], [1, 3]]], [0], 2, segments=[[[0, 1], [0, b]]]) for b in (0, 1))
    assert one.fingerprint != other.fingerprint


# ---- Long texts ----------------------------------------------------------------------------------------------------

FIELDS = "ids", "positions", "first", "last", "targets"
WORDS = ["the cat", "the cat sat on the mat and the mat sat on the cat and so on and on", "on the mat sat the cat", ""]


@pytest.mark.parametrize("causal", [False, True])
def test_the_chunks_of_a_text_stand_one_below_the_other_and_do_not_see_each_other(causal):
    dataset = LongTextSet([[1, 2, 3, 4, 5], [6], [7, 8, 9]], [0, 1, 0], 2, causal)
    batch = dataset.batch(np.array([2, 0]))
    assert (batch.chunks, len(batch), batch.tokens, batch.supervised) == (3, 6, 8, 2)
    assert batch.ids.tolist() == [[7, 8], [9, 0], [0, 0], [1, 2], [3, 4], [5, 0]]
    assert batch.positions.tolist() == [[0, 1], [0, 0], [0, 0], [0, 1], [0, 1], [0, 0]]
    assert batch.valid.tolist() == [[True, True], [True, False], [False, False]] + [[True, True]] * 2 + [[True, False]]
    assert batch.last[0].tolist() == batch.last[4].tolist() == ([0, 1] if causal else [1, 1])
    assert batch.targets.tolist() == [0, 0] and (batch.next_tokens[3] == [2, IGNORE]).all()
    assert dataset.batch(np.array([1, 2])).chunks == 2 and dataset.batch(np.array([1])).chunks == 1
    assert (len(dataset), dataset.largest_id, [len(document) for document in dataset.documents]) == (3, 9, [5, 1, 3])


@pytest.mark.parametrize("causal", [False, True])
def test_texts_of_one_chunk_are_what_they_are_in_a_classification_set(causal):
    documents, labels, rows = [[5, 6, 7], [8], [9, 3]], [0, 1, 1], np.array([2, 0, 1])
    long, plain = (kind(documents, labels, 3, causal).batch(rows) for kind in (LongTextSet, ClassificationSet))
    assert long.chunks == plain.chunks == 1
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(long, name), getattr(plain, name), err_msg=name)


def test_what_is_longer_than_all_chunks_is_cut_and_listed():
    dataset = LongTextSet([[1] * 7, [2] * 4, [3] * 5], [0, 1, 0], 2, chunks=2)
    assert dataset.truncated == [0, 2] and [len(document) for document in dataset.documents] == [4, 4, 4]
    part = dataset.subset(np.array([1, 2]))
    assert isinstance(part, LongTextSet) and part.truncated == [1] and part.batch(np.array([0, 1])).chunks == 2
    assert len(dataset) == 3 and dataset.truncated == [0, 2]
    others = [LongTextSet([[1] * 7, [2] * 4, [3] * 5], [0, 1, 0], *given) for given in [(2, False, 2), (4, True, 1)]]
    assert len({each.fingerprint for each in (dataset, part, *others)}) == 4


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("chunks", [1, 3, 50])
def test_each_chunk_of_a_split_stands_between_special_tokens(masked, chunks):
    tokenizer = Tokenizer.train(WORDS * 9, 300, masked=masked)
    split = Split(WORDS, np.array([0, 1, 1, 0]))
    dataset = LongTextSet.from_split(split, tokenizer, 6, chunks=chunks)
    room = 6 - len(tokenizer.frame([]))
    for document, text in zip(dataset.documents, WORDS):
        pieces = [document[start : start + 6].tolist() for start in range(0, len(document), 6)]
        inner = [piece[len(tokenizer.frame([])) - 1 : -1] for piece in pieces]            # the end token is the last
        assert pieces == [tokenizer.frame(piece) for piece in inner] and len(pieces) <= chunks
        assert sum(inner, []) == tokenizer.encode(text)[: room * chunks]
    assert dataset.truncated == [i for i, text in enumerate(WORDS) if len(tokenizer.encode(text)) > room * chunks]
    plain = ClassificationSet.from_split(split, tokenizer, 6)
    for long, cut in zip(dataset.documents, plain.documents):
        assert long[:6].tolist() == cut.tolist()                # a text that fits, and the first chunk of any other
    assert chunks > 1 or dataset.truncated == plain.truncated
    assert (dataset.labels == split.labels).all() and dataset.block_size == 6


@pytest.mark.parametrize("given, message", [
    (([[1]], [0], 0), "LongTextSet: block_size and chunks must be at least 1, got 0 and 4"),
    (([[1]], [0], 2, True, 0), "LongTextSet: block_size and chunks must be at least 1, got 2 and 0"),
    (([[1]], [0, 1], 2), "LongTextSet: expected as many labels as documents, got 2 labels and 1 documents"),
    (([[1], []], [0, 1], 2), "LongTextSet: document 1 is empty. Leave empty texts out")])
def test_what_makes_no_set_of_long_texts_is_told(given, message):
    with pytest.raises(ValueError, match=message):
        LongTextSet(*given)

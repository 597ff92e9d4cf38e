"""Batches: intervals, padding, packing; and the two sets: every token predicted once, never across documents."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minitune.data import Batch, ClassificationSet, Example, LanguageModelSet, Split, Tokenizer
from minitune.data.example_set import encode_examples
from minitune.ops import IGNORE

DOCUMENTS = [[5, 6, 7], [8, 9]]


def test_a_row_sees_its_document_up_to_each_token():
    batch = Batch.causal([[[5, 6, 7]]])
    assert batch.ids.tolist() == [[5, 6, 7]] and batch.positions.tolist() == [[0, 1, 2]]
    assert batch.first.tolist() == [[0, 0, 0]] and batch.last.tolist() == [[0, 1, 2]]
    assert batch.targets.tolist() == [[6, 7, IGNORE]]


@pytest.mark.parametrize("side, ids, first, last, positions", [
    ("right", [8, 9, 0], [0, 0, 1], [0, 1, 0], [0, 1, 0]), ("left", [0, 8, 9], [1, 1, 1], [0, 1, 2], [0, 0, 1]),
])
def test_shorter_rows_are_padded_on_the_asked_side(side, ids, first, last, positions):
    batch = Batch.causal([[d] for d in DOCUMENTS], side=side)
    assert batch.ids[1].tolist() == ids and batch.positions[1].tolist() == positions
    assert batch.first[1].tolist() == first and batch.last[1].tolist() == last
    assert batch.valid.tolist() == [[True] * 3, [i != 0 for i in ids]]
    assert batch.targets[1].tolist() == ([9, IGNORE, IGNORE] if side == "right" else [IGNORE, 9, IGNORE])
    assert (batch.tokens, batch.supervised, len(batch)) == (5, 3, 2)


def test_padding_is_filled_with_the_asked_id():
    assert Batch.causal([[d] for d in DOCUMENTS], pad=99).ids[1].tolist() == [8, 9, 99]


def test_packed_documents_do_not_see_or_predict_each_other():
    batch = Batch.causal([DOCUMENTS])
    assert batch.ids.tolist() == [[5, 6, 7, 8, 9]] and batch.positions.tolist() == [[0, 1, 2, 0, 1]]
    assert batch.first.tolist() == [[0, 0, 0, 3, 3]] and batch.last.tolist() == [[0, 1, 2, 3, 4]]
    assert batch.targets.tolist() == [[6, 7, IGNORE, 9, IGNORE]]


def test_labels_take_the_place_of_next_tokens():
    batch = Batch.causal([[d] for d in DOCUMENTS], labels=[1, IGNORE])
    assert batch.targets.tolist() == [1, IGNORE] and batch.supervised == 1


def test_all_arrays_are_integers_of_one_shape():
    for batch in (Batch.causal([DOCUMENTS, [[1]]], side="left"), Batch.of_ids(np.ones((2, 3), np.uint8)),
                  LanguageModelSet(DOCUMENTS, 2).batch([0, 1])):
        arrays = [batch.ids, batch.positions, batch.first, batch.last, batch.targets]
        assert {a.shape for a in arrays} == {batch.ids.shape} and {a.dtype.kind for a in arrays} <= {"i", "u"}


def test_full_rows_of_ids_are_documents_of_their_own():
    batch, same = Batch.of_ids(np.array([[1, 2, 3], [4, 5, 6]])), Batch.causal([[[1, 2, 3]], [[4, 5, 6]]])
    for name in "ids", "positions", "first", "last", "targets":
        np.testing.assert_array_equal(getattr(batch, name), getattr(same, name))


def test_batch_errors_say_what_is_wrong():
    with pytest.raises(ValueError, match='Batch.causal: side must be "left" or "right", got \'top\''):
        Batch.causal([[[1]]], side="top")
    with pytest.raises(ValueError, match="Batch.causal: expected a label for each of 2 rows, got 1"):
        Batch.causal([[[1]], [[2]]], labels=[0])
    with pytest.raises(ValueError, match="Batch.causal: row 1 holds an empty document. Leave empty texts out"):
        Batch.causal([[[1]], [[2], []]])
    for ids in np.ones(3, int), np.ones((2, 3)), [1, 2]:
        with pytest.raises(ValueError, match=r"expected integer ids \(B, T\), got .* For one text write ids\[None\]"):
            Batch.of_ids(ids)


def test_a_batch_of_no_rows_raises():
    with pytest.raises(ValueError, match="Batch.causal: expected rows of documents"):
        Batch.causal([[1, 2, 3]])               # one bracket too few
    with pytest.raises(ValueError, match="Batch.causal: expected rows of documents"):
        Batch.causal([])


# ---- LanguageModelSet ----------------------------------------------------------------------------------------------

@settings(derandomize=True, database=None, deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 9), min_size=1, max_size=8), st.integers(1, 6))
def test_every_token_but_the_first_of_its_document_is_predicted_exactly_once(lengths, block_size):
    """Each token has an id of its own, so that what is predicted can be told; the cut-off tail may be missing."""
    ends = np.cumsum(lengths)
    documents = [np.arange(end - length, end) for length, end in zip(lengths, ends, strict=True)]
    total = int(ends[-1])
    if total < block_size:
        with pytest.raises(ValueError, match=f"LanguageModelSet: {total} tokens do not fill a row of {block_size}"):
            LanguageModelSet(documents, block_size)
        return
    rows = LanguageModelSet(documents, block_size)
    batch = rows.batch(np.arange(len(rows)))
    assert batch.ids.shape == (total // block_size, block_size)
    predicted = batch.targets[batch.targets != IGNORE]
    firsts = {int(d[0]) for d in documents if len(d)}
    reach = min(batch.ids.size + 1, total)                  # the last row predicts one token beyond itself
    assert sorted(predicted.tolist()) == [t for t in range(reach) if t not in firsts]
    owner = np.repeat(np.arange(len(lengths)), lengths)
    for b, t in np.ndindex(batch.ids.shape):
        token, target = batch.ids[b, t], batch.targets[b, t]
        seen = batch.ids[b, batch.first[b, t] : batch.last[b, t] + 1]
        assert seen[-1] == token and {int(owner[s]) for s in seen} == {int(owner[token])}
        assert batch.positions[b, t] == t - batch.first[b, t]
        assert target == IGNORE or (target == token + 1 and owner[target] == owner[token])
        assert batch.first[b, t] == 0 or batch.ids[b, batch.first[b, t]] in firsts


def test_a_document_cut_between_rows_goes_on_in_the_next_row():
    rows = LanguageModelSet([[1, 2, 3, 4], [5, 6]], 3)
    batch = rows.batch([1, 0])                              # any order of rows
    assert batch.ids.tolist() == [[4, 5, 6], [1, 2, 3]] and batch.targets.tolist() == [[IGNORE, 6, IGNORE], [2, 3, 4]]
    assert batch.first.tolist() == [[0, 1, 1], [0, 0, 0]] and batch.positions.tolist() == [[0, 0, 1], [0, 1, 2]]
    assert len(rows) == 2


@pytest.mark.parametrize("documents", [[], [[]], [[1, 2]]])
def test_too_little_text_for_a_row_raises(documents):
    with pytest.raises(ValueError, match="LanguageModelSet: .* tokens do not fill a row of 3. Give more text"):
        LanguageModelSet(documents, 3)


@pytest.mark.parametrize("block_size", [0, -1])
def test_a_row_of_no_tokens_raises(block_size):
    with pytest.raises(ValueError, match="LanguageModelSet: block_size must be at least 1"):
        LanguageModelSet([[1, 2]], block_size)


# ---- ClassificationSet -----------------------------------------------------------------------------------------------

def test_a_classification_batch_holds_one_document_a_row_padded_to_its_longest():
    rows = ClassificationSet([[1], [2, 3], [4, 5, 6, 7]], [0, 1, 2], block_size=3)
    batch = rows.batch(np.array([2, 0]))
    assert batch.ids.tolist() == [[4, 5, 6], [1, 0, 0]] and batch.targets.tolist() == [2, 0]
    assert batch.valid.tolist() == [[True] * 3, [True, False, False]]
    assert rows.batch([0, 1]).ids.shape == (2, 2) and len(rows) == 3


def test_a_subset_holds_the_asked_rows_in_their_order():
    rows = ClassificationSet([[1], [2], [3]], [0, 1, 2], block_size=4).subset(np.array([2, 0]))
    assert len(rows) == 2 and rows.labels.tolist() == [2, 0] and rows.batch([0, 1]).ids.tolist() == [[3], [1]]


def test_labels_and_documents_that_differ_in_number_raise():
    with pytest.raises(ValueError, match="expected as many labels as documents, got 1 labels and 2 documents"):
        ClassificationSet([[1], [2]], [0], block_size=4)


def test_bidirectional_rows_see_all_of_themselves_and_no_padding():
    batch = Batch.bidirectional([[5, 6, 7], [8]], segments=[[0, 0, 1], [0]], targets=[[IGNORE, 9, IGNORE], [4]])
    assert batch.first[batch.valid].tolist() == [0] * 4 and batch.last.tolist() == [[2, 2, 2], [0, 0, 0]]
    assert batch.valid.tolist() == [[True] * 3, [True, False, False]]
    assert batch.segments.tolist() == [[0, 0, 1], [0, 0, 0]]
    assert batch.targets.tolist() == [[IGNORE, 9, IGNORE], [4, IGNORE, IGNORE]] and batch.supervised == 2
    assert Batch.bidirectional([[5], [6]], labels=[1, 0]).targets.tolist() == [1, 0]
    assert Batch.bidirectional([[5, 6]]).supervised == 0


@pytest.mark.parametrize("name", ["segments", "targets"])
def test_bidirectional_wants_a_number_for_each_token(name):
    with pytest.raises(ValueError, match=f"bidirectional: {name} must hold a number for each token"):
        Batch.bidirectional([[5, 6], [7]], **{name: [[0, 1], [0, 1]]})


def test_next_tokens_are_those_of_the_same_document():
    batch = Batch.causal([DOCUMENTS, [[3, 4]]], labels=[0, 1])
    assert batch.next_tokens.tolist() == [[6, 7, IGNORE, 9, IGNORE], [4, IGNORE, IGNORE, IGNORE, IGNORE]]
    assert Batch.causal([DOCUMENTS]).next_tokens.tolist() == Batch.causal([DOCUMENTS]).targets.tolist()


def test_a_set_for_a_model_that_is_not_causal_sees_whole_documents():
    dataset = ClassificationSet(DOCUMENTS, [0, 1], 8, causal=False)
    assert dataset.subset(np.array([0])).batch(np.array([0])).last.tolist() == [[2, 2, 2]]


def test_a_tokenizers_start_token_begins_every_text_that_a_model_reads():
    """As Llama was trained; GPT-2 has none."""
    texts = ["the cat", "a dog"]
    for masked in (False, True):
        tokenizer = Tokenizer.train(["the cat sat and a dog sat"] * 9, vocab_size=270, masked=masked)
        begin = [tokenizer.start] if masked else []
        whole = [[*begin, *ids, tokenizer.end] for ids in tokenizer.encode_batch(texts)]
        rows = LanguageModelSet.from_texts(texts, tokenizer, sum(map(len, whole)))
        assert rows.ids[0].tolist() == [i for row in whole for i in row]
        (ids, learned), = encode_examples([Example("the cat", ((0, 7),), (7,))], tokenizer)
        assert ids.tolist() == whole[0] and learned.tolist() == [False] * len(begin) + [True] * (len(ids) - len(begin))
        labelled = ClassificationSet.from_split(Split(texts, np.array([0, 1])), tokenizer, 16)
        assert [row.tolist() for row in labelled.documents] == whole
    with pytest.raises(ValueError, match="from_split: block_size must be at least 3, special tokens and one"):
        ClassificationSet.from_split(Split(texts, np.array([0, 1])), tokenizer, 2)

"""Sets with a label for every token, and with choices between texts."""

import numpy as np
import pytest

from minitune.data import MultipleChoiceSet, TokenClassificationSet
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

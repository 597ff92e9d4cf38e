"""Masked language modelling: what is hidden, how often and by what seed; rows and pairs of texts; errors."""

from math import sqrt

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

from minitune import backend, no_grad
from minitune.data import MaskedSet, NextSentenceSet, Tokenizer, mask_tokens
from minitune.ops import IGNORE

TOKENIZER = Tokenizer.train(["the cat sat on the mat and the dog sat on the log"] * 9, vocab_size=300, masked=True)
SPECIAL = [TOKENIZER.start, TOKENIZER.end, TOKENIZER.pad, TOKENIZER.mask]
ORDINARY = np.setdiff1d(np.arange(TOKENIZER.vocab_size), SPECIAL)
NO_MASK = Tokenizer.train(["no mask here"] * 9, vocab_size=262)


def documents(*lengths, start=0):
    """Documents of these lengths whose tokens tell them apart: ordinary token number d in document d."""
    return [[int(ORDINARY[start + d])] * length for d, length in enumerate(lengths)]


def within_binomial_bounds(count, total, p):
    """Five standard deviations: chance alone leaves them once in 1.7 million times."""
    return abs(count - total * p) <= 5 * sqrt(total * p * (1 - p))


# ---- mask_tokens ---------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def many():
    """(ids, masked ids, targets) of 400,000 ordinary tokens."""
    ids = ORDINARY[np.random.default_rng(0).integers(0, len(ORDINARY), (400, 1000))]
    return ids, *mask_tokens(ids, TOKENIZER, random=backend.Random(7))


def test_fifteen_percent_are_predicted_and_80_10_10_become_of_them(many):
    ids, masked, targets = many
    chosen = targets != IGNORE
    assert within_binomial_bounds(chosen.sum(), ids.size, 0.15)
    hidden, same = masked[chosen] == TOKENIZER.mask, masked[chosen] == ids[chosen]
    by_chance = 0.1 / len(ORDINARY)                 # a random token may be the one that stood there
    assert within_binomial_bounds(hidden.sum(), chosen.sum(), 0.8)
    assert within_binomial_bounds(same.sum(), chosen.sum(), 0.1 + by_chance)
    assert within_binomial_bounds((~hidden & ~same).sum(), chosen.sum(), 0.1 - by_chance)


def test_targets_are_what_stood_there_and_nothing_else_changes(many):
    ids, masked, targets = many
    chosen = targets != IGNORE
    np.testing.assert_array_equal(targets[chosen], ids[chosen])
    np.testing.assert_array_equal(masked[~chosen], ids[~chosen])


def test_random_tokens_are_ordinary_ones_and_all_of_them_equally_often(many):
    ids, masked, targets = many
    swapped = masked[(masked != ids) & (masked != TOKENIZER.mask)]
    counts = np.bincount(swapped, minlength=TOKENIZER.vocab_size)
    assert not counts[SPECIAL].any()
    expected = len(swapped) / len(ORDINARY)
    chi_square, freedom = ((counts[ORDINARY] - expected) ** 2 / expected).sum(), len(ORDINARY) - 1
    assert abs(chi_square - freedom) <= 5 * sqrt(2 * freedom)       # five standard deviations of chi-square


def test_places_are_chosen_independently_of_their_neighbours(many):
    chosen = many[2] != IGNORE
    both = (chosen[:, 1:] & chosen[:, :-1]).sum()
    assert within_binomial_bounds(both, chosen[:, 1:].size, 0.15**2)


def test_special_tokens_are_never_chosen():
    ids = np.array([[SPECIAL[0], *ORDINARY[:5], SPECIAL[1], SPECIAL[2], SPECIAL[3]]] * 50)
    masked, targets = mask_tokens(ids, TOKENIZER, probability=1.0)
    special = np.isin(ids, SPECIAL)
    np.testing.assert_array_equal(masked[special], ids[special])
    np.testing.assert_array_equal(targets == IGNORE, special)


def test_a_row_has_a_target_if_it_has_an_ordinary_token():
    ids = np.full((500, 4), TOKENIZER.end)
    ids[:-1, 2] = ORDINARY[0]
    _, targets = mask_tokens(ids, TOKENIZER)
    assert (targets != IGNORE).sum(1).tolist() == [1] * 499 + [0]


def test_the_same_seed_hides_the_same_tokens_and_the_counter_goes_on():
    ids = ORDINARY[np.arange(200).reshape(2, 100)]
    backend.seed(5)
    first, second = mask_tokens(ids, TOKENIZER)[0], mask_tokens(ids, TOKENIZER)[0]
    backend.seed(5)
    np.testing.assert_array_equal(mask_tokens(ids, TOKENIZER)[0], first)
    assert (first != second).any() and set(backend.random.counters) == {"mask"}


def test_the_ids_that_are_given_stay_as_they_are():
    ids = ORDINARY[np.arange(100)]
    before = ids.copy()
    mask_tokens(ids, TOKENIZER, probability=1.0)
    np.testing.assert_array_equal(ids, before)


# ---- MaskedSet -----------------------------------------------------------------------------------------------------

@settings(derandomize=True, database=None, deadline=None, max_examples=60)
@given(st.lists(st.integers(0, 20), min_size=1, max_size=8), st.integers(3, 9))
def test_every_token_stands_in_one_row_and_sees_its_own_document_alone(lengths, block_size):
    if not sum(lengths):
        with pytest.raises(ValueError, match=f"MaskedSet: too few tokens in {len(lengths)} documents"):
            MaskedSet(documents(*lengths), TOKENIZER, block_size)
        return
    rows = MaskedSet(documents(*lengths), TOKENIZER, block_size)
    batch = rows.batch(np.arange(len(rows)))
    ids = np.where(batch.targets == IGNORE, batch.ids, batch.targets)          # as before anything was hidden
    assert ids.shape[1] <= block_size
    assert np.bincount(ids[batch.valid], minlength=300)[ORDINARY[: len(lengths)]].tolist() == lengths
    assert (ids[~batch.valid] == TOKENIZER.pad).all() and (batch.targets[~batch.valid] == IGNORE).all()
    for b, t in zip(*np.nonzero(batch.valid)):
        first, last = batch.first[b, t], batch.last[b, t]
        assert first <= t <= last and batch.positions[b, t] == t - first
        piece = ids[b, first : last + 1]
        assert piece[0] == TOKENIZER.start and piece[-1] == TOKENIZER.end and len(set(piece[1:-1].tolist())) == 1


def test_a_short_document_is_never_cut_and_short_ones_share_a_row():
    rows = MaskedSet(documents(3, 2, 12), TOKENIZER, block_size=10)
    assert [[len(piece) for piece in row] for row in rows.rows] == [[5], [10], [6, 4]]


def test_masks_are_drawn_anew_each_time_that_a_row_is_trained_on():
    rows = MaskedSet(documents(500), TOKENIZER, block_size=502)
    assert (rows.batch([0]).ids != rows.batch([0]).ids).any()


@pytest.mark.parametrize("kind", [MaskedSet, NextSentenceSet])
@no_grad()
def test_measured_a_row_is_the_same_in_any_order_and_batch(kind):
    texts = documents(*[50] * 6)
    fixed, again, other = (kind(texts, TOKENIZER, 20, seed=seed) for seed in (3, 3, 4))
    backend.seed(1)
    whole = fixed.batch(np.arange(len(fixed)))
    for row in reversed(range(len(fixed))):
        for rows in fixed, again:
            one = rows.batch(np.array([row, 0]))
            for name in "ids", "positions", "first", "last", "targets", "segments", "related":
                if getattr(whole, name) is not None:
                    np.testing.assert_array_equal(getattr(one, name)[0], getattr(whole, name)[row])
    assert (other.batch(np.arange(len(other))).ids != whole.ids).any()
    assert not backend.random.counters              # training's numbers are not used up


@pytest.mark.parametrize("kind", [MaskedSet, NextSentenceSet])
def test_a_fingerprint_changes_with_tokens_rows_probability_and_seed(kind):
    texts = documents(30, 30, 20)
    sets = [kind(texts, TOKENIZER, 20), kind(texts, TOKENIZER, 19), kind(texts, TOKENIZER, 20, 0.2),
            kind(texts, TOKENIZER, 20, seed=1), kind(documents(30, 30, 20, start=1), TOKENIZER, 20)]
    assert len({rows.fingerprint for rows in sets}) == len(sets)
    assert kind(texts, TOKENIZER, 20).fingerprint == sets[0].fingerprint


def test_a_split_holds_out_the_last_rows():
    rows = MaskedSet(documents(80, 80), TOKENIZER, block_size=10)
    with no_grad():
        rows.batch([0])                         # what was drawn for the whole is not that of a part
        train, held_out = rows.split(4)
        assert (len(rows), len(train), len(held_out)) == (20, 16, 4)
        assert train.rows + held_out.rows == rows.rows
        both = held_out.batch([0, 1])
        np.testing.assert_array_equal(both.ids, held_out.batch([1, 0]).ids[::-1])
    unmasked = np.where(both.targets == IGNORE, both.ids, both.targets)
    assert unmasked[0].tolist() == [i for piece in held_out.rows[0] for i in piece.tolist()]
    for count in 0, 20:
        with pytest.raises(ValueError, match=f"MaskedSet.split: held_out must be from 1 to 19, got {count}"):
            rows.split(count)


def test_a_model_needs_every_token_that_may_come_at_random():
    assert MaskedSet(documents(9), TOKENIZER, 8).largest_id == TOKENIZER.vocab_size - 1


def test_texts_are_encoded_a_document_each():
    rows = MaskedSet.from_texts(["the cat", "", "the dog sat"], TOKENIZER, 50)
    batch = rows.batch([0])
    unmasked = np.where(batch.targets == IGNORE, batch.ids, batch.targets)
    assert sorted(TOKENIZER.decode(piece) for piece in rows.rows[0]) == ["the cat", "the dog sat"]
    assert TOKENIZER.decode(unmasked[0]) == "the dog satthe cat"


# ---- NextSentenceSet -----------------------------------------------------------------------------------------------

def parts(rows, batch):
    """(A, B) of each row of a batch as lists of ids, nothing hidden, checked to stand where they should."""
    ids = np.where(batch.targets == IGNORE, batch.ids, batch.targets)
    for b in range(len(batch)):
        row = ids[b, batch.valid[b]]
        first_end, second_end = np.flatnonzero(row == TOKENIZER.end)
        assert row[0] == TOKENIZER.start and second_end == len(row) - 1
        assert batch.segments[b, : len(row)].tolist() == [0] * (first_end + 1) + [1] * (len(row) - first_end - 1)
        assert not batch.segments[b, len(row) :].any()
        assert (batch.first[b, : len(row)] == 0).all() and (batch.last[b, : len(row)] == len(row) - 1).all()
        yield row[1:first_end].tolist(), row[first_end + 1 : -1].tolist()


def test_a_second_text_follows_its_first_or_comes_from_another_document():
    texts = [list(map(int, ORDINARY[d * 30 : d * 30 + 30])) for d in range(5)]     # each token has an id of its own
    rows = NextSentenceSet(texts, TOKENIZER, block_size=13)
    batch = rows.batch(np.arange(len(rows)))
    assert {0, 1} == set(batch.related.tolist()) and batch.ids.shape[1] <= 13
    for (a, b), related in zip(parts(rows, batch), batch.related):
        follows, same = b[0] == a[-1] + 1, (b[0] - ORDINARY[0]) // 30 == (a[0] - ORDINARY[0]) // 30
        assert (follows and same) if related == 0 else not same


def test_half_of_the_seconds_follow_and_the_others_come_from_all_other_rows_equally():
    texts = documents(*[8 * n for n in (1, 2, 3, 4)])       # one to four rows each
    rows = NextSentenceSet(texts, TOKENIZER, block_size=11)
    assert len(rows) == 10
    batch = rows.batch(np.repeat(0, 20_000))                # of document 0, over and over
    assert within_binomial_bounds(batch.related.sum(), 20_000, 0.5)
    second = np.array([b[0] for _, b in parts(rows, batch)])[batch.related == 1]
    for d, share in enumerate((0, 2 / 9, 3 / 9, 4 / 9)):
        assert within_binomial_bounds((second == ORDINARY[d]).sum(), len(second), share)


def test_both_texts_of_a_pair_are_masked():
    rows = NextSentenceSet(documents(300, 300), TOKENIZER, block_size=303, seed=0)
    batch = rows.batch([0, 1])
    hidden = batch.targets != IGNORE
    assert (hidden & (batch.segments == 0)).any(1).all() and (hidden & (batch.segments == 1)).any(1).all()


def test_held_out_pairs_take_no_text_from_the_training_rows():
    rows = NextSentenceSet(documents(*[16] * 6), TOKENIZER, block_size=11)
    train, held_out = rows.split(4)
    for part, expected in (train, {0, 1, 2, 3}), (held_out, {4, 5}):
        seen = {i for n in range(20) for a, b in parts(part, part.batch(np.arange(len(part)))) for i in (*a, *b)}
        assert seen == {int(ORDINARY[d]) for d in expected}


# ---- Errors --------------------------------------------------------------------------------------------------------

def test_a_tokenizer_without_a_mask_token_raises_with_the_repair():
    repair = r"the tokenizer has no mask token. Make one that has by Tokenizer.train\(..., masked=True\)"
    with pytest.raises(ValueError, match=f"mask_tokens: {repair}"):
        mask_tokens(np.zeros((1, 2), int), NO_MASK)
    for kind in MaskedSet, NextSentenceSet:
        with pytest.raises(ValueError, match=f"{kind.__name__}: {repair}"):
            kind([[1, 2]], NO_MASK, 8)


@pytest.mark.parametrize("probability", [0, -0.1, 1.1])
def test_a_probability_that_is_none_raises(probability):
    with pytest.raises(ValueError, match=f"MaskedSet: probability must be above 0 and at most 1, got {probability}"):
        MaskedSet(documents(9), TOKENIZER, 8, probability)


@pytest.mark.parametrize("kind, least", [(MaskedSet, 3), (NextSentenceSet, 5)])
def test_a_block_without_room_for_text_raises(kind, least):
    with pytest.raises(ValueError, match=f"{kind.__name__}: block_size must be at least {least}, as {least - 1 - (least > 3)} "
                                         f"special tokens stand around the text, got {least - 1}"):
        kind(documents(9, 9), TOKENIZER, least - 1)
    assert kind(documents(9, 9), TOKENIZER, least).batch([0]).tokens == least


def test_next_sentences_of_one_document_raise():
    with pytest.raises(ValueError, match="NextSentenceSet: expected two documents of at least two tokens"):
        NextSentenceSet(documents(100, 1), TOKENIZER, 20)
    with pytest.raises(ValueError, match="NextSentenceSet: too few tokens in 2 documents"):
        NextSentenceSet(documents(1, 1), TOKENIZER, 20)


def test_unknown_and_other_special_tokens_of_a_loaded_tokenizer_are_neither_chosen_nor_put_in(tmp_path):
    words = {name: i for i, name in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the", "cat"])}
    rules = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    rules.add_special_tokens(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])
    rules.save(str(tmp_path / "tokenizer.json"))
    loaded = Tokenizer.load(tmp_path / "tokenizer.json")
    assert loaded.special == [0, 1, 2, 3, 4]
    masked, targets = mask_tokens(np.full((20, 100), 5), loaded, probability=1.0)
    assert set(np.unique(masked)) == {4, 5, 6} and (targets == 5).all()
    assert (mask_tokens(np.full((2, 10), 1), loaded, probability=1.0)[1] == IGNORE).all()

"""Examples: what is supervised is what was marked, the end is always learned, and packing changes nothing but speed."""

from copy import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minitune import models
from minitune.data import Batch, Example, ExampleSet, Tokenizer, chat_prompt
from minitune.data.example_set import encode_examples, pack_rows
from minitune.ops import IGNORE

TOKENIZER = Tokenizer.train(["to be or not to be, that is the question", "User: Assistant: System: yes no maybe "] * 9, 300)
CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "To be?"},
        {"role": "assistant", "content": "Yes."}, {"role": "user", "content": "Or not?"},
        {"role": "assistant", "content": "No."}]


def supervised_text(examples, row=0):
    """The text of a row's targets that count, "|" for an end token."""
    targets = examples.batch([row]).targets[0]
    return "".join("|" if i == TOKENIZER.end else TOKENIZER.decode([i]) for i in targets[targets != IGNORE])


# ---- What is supervised --------------------------------------------------------------------------------------------

def test_of_a_completion_only_the_completion_and_the_end_are_supervised():
    assert supervised_text(ExampleSet([Example.completion("to be or", " not to be")], TOKENIZER, 64)) == " not to be|"


def test_of_a_chat_every_answer_and_its_end_are_supervised():
    assert supervised_text(ExampleSet([Example.chat(CHAT)], TOKENIZER, 64)) == " Yes.| No.|"


def test_an_answer_of_weight_0_is_read_only_with_its_end():
    messages = [*CHAT[:2], {**CHAT[2], "weight": 0}, *CHAT[3:]]
    examples = ExampleSet([Example.chat(messages)], TOKENIZER, 64)
    assert supervised_text(examples) == " No.|"
    assert (examples.batch([0]).ids == TOKENIZER.end).sum() == 2


def test_of_a_plain_text_all_is_supervised_but_the_first_token_which_nothing_predicts():
    examples = ExampleSet([Example.plain("to be or not")], TOKENIZER, 64)
    ids = TOKENIZER.encode("to be or not")
    assert examples.batch([0]).targets.tolist() == [[*ids[1:], TOKENIZER.end, IGNORE]]


def test_any_spans_may_be_marked():
    example = Example("name: Ada, born: 1815", ((6, 9), (17, 21)), (21,))
    assert supervised_text(ExampleSet([example], TOKENIZER, 64)) == "Ada1815|"


def test_what_looks_like_a_special_token_is_text_and_only_the_true_end_ends():
    examples = ExampleSet([Example.completion("say", " <|endoftext|> and go on")], TOKENIZER, 64)
    assert supervised_text(examples) == " <|endoftext|> and go on|"


def test_a_prompt_has_the_same_tokens_in_training_as_at_generation():
    """No token lies on both sides of a mark, whatever the tokenizer would merge."""
    examples = ExampleSet([Example.completion("to b", "e or not"), Example.chat(CHAT)], TOKENIZER, 64, pack=False)
    assert examples.tokens[0].tolist()[: len(TOKENIZER.encode("to b"))] == TOKENIZER.encode("to b")
    for before in (2, 4):                       # one turn, and two with the end token of the first answer between them
        ((ids, _),) = encode_examples([chat_prompt(CHAT[:before])], TOKENIZER)
        assert Example.chat(CHAT).text.startswith(chat_prompt(CHAT[:before]).text)
        assert examples.tokens[1].tolist()[: len(ids)] == ids.tolist()
    assert TOKENIZER.end in ids


@given(st.lists(st.tuples(st.text("abc é☕", min_size=1, max_size=12), st.booleans()), min_size=1, max_size=6))
@settings(max_examples=60, deadline=None)
def test_the_mask_is_made_of_the_marked_characters(parts):
    text, spans = "", []
    for part, marked in parts:
        if marked:
            spans.append((len(text), len(text) + len(part)))
        text += part
    example = Example("x" + text, tuple((a + 1, b + 1) for a, b in spans), (len(text) + 1,))
    if not spans:
        with pytest.raises(ValueError, match="no supervised token"):
            ExampleSet([example], TOKENIZER, 200)
        return
    learned = "".join(part for part, marked in parts if marked)
    expected = TOKENIZER.encode_batch([part for part, marked in parts if marked])
    targets = ExampleSet([example], TOKENIZER, 200).batch([0]).targets[0]
    kept = [i for i in targets.tolist() if i not in (IGNORE, TOKENIZER.end)]
    assert kept == [i for ids in expected for i in ids] and TOKENIZER.decode(kept) == learned
    assert (TOKENIZER.end in targets) == parts[-1][1]


# ---- Too long, and without anything to learn -----------------------------------------------------------------------

def test_too_long_is_an_error_that_names_the_examples_and_the_repair():
    long = Example.completion("to be or not to be, " * 9, "that", name="a.jsonl, line 3")
    with pytest.raises(ValueError, match=r"a\.jsonl, line 3 longer than block_size = 16 .*truncate=True"):
        ExampleSet([Example.plain("to be"), long], TOKENIZER, 16)


def test_truncation_takes_from_the_beginning_so_that_the_end_is_learned():
    long = Example.completion("to be or not to be, " * 9, "that", name="line 3")
    examples = ExampleSet([long], TOKENIZER, 16, truncate=True)
    assert examples.truncated == ["line 3"] and supervised_text(examples) == "that|"
    assert len(examples.tokens[0]) == 16
    view = examples.view(0)
    assert view.states.count("truncated") == len(view.tokens) - 16 > 0


def test_an_example_without_a_supervised_token_is_named():
    fine, empty = Example.plain("to be"), Example("to be", (), (5,), name="chat.jsonl, line 7")
    with pytest.raises(ValueError, match=r"no supervised token in chat\.jsonl, line 7\. Mark what"):
        ExampleSet([fine, empty], TOKENIZER, 16)


@pytest.mark.parametrize("make, complaint", [
    (lambda: Example.plain("", name="b.txt"), "b.txt: the text is empty"),
    (lambda: Example.completion("a", ""), "the completion is empty"),
    (lambda: Example.chat([], "line 2"), "line 2: expected a list of messages"),
    (lambda: Example.chat([{"role": "robot", "content": "x"}]), "message 0: role must be one of system, .*, got 'rob"),
    (lambda: Example.chat(CHAT[:1] + [{"role": "assistant", "content": " "}]), r"message 1 \(assistant\): content must be"),
    (lambda: Example.chat(CHAT[:2]), "no message of the assistant is to be learned"),
    (lambda: Example.chat([{**CHAT[2], "weight": 2}]), "weight must be 0 or 1"),
    (lambda: Example("abc", ((1, 9),), ()), "spans must be in order"), (lambda: Example("abc", ((1, 1),), ()), "spans must"),
    (lambda: Example("abc", ((1, 3), (2, 3)), ()), "spans must be in order"), (lambda: Example("abc", (), (4,)), "ends must"),
    (lambda: ExampleSet([], TOKENIZER, 8), "at least one example")])
def test_what_is_malformed_is_told(make, complaint):
    with pytest.raises(ValueError, match=complaint):
        make()


# ---- Packing -------------------------------------------------------------------------------------------------------

def mixed():
    return [Example.chat(CHAT), Example.completion("to be", " or not"), Example.plain("that is the question"),
            Example.completion("yes", " no")]


def test_a_pack_loses_what_its_examples_lose_apart_and_has_their_gradients():
    model = models.GPT(models.GPTConfig(TOKENIZER.vocab_size, 64, 2, 2, 16))
    results = []
    for pack in (True, False):
        examples = ExampleSet(mixed(), TOKENIZER, 64, pack=pack)
        model.zero_grad()
        batch = examples.batch(np.arange(len(examples)))
        loss = model.loss(batch)["language_model"][0]
        loss.backward()
        results.append((loss.item(), batch.supervised, {n: p.grad for n, p in model.named_parameters()}))
    (packed, count, grads), (apart, other_count, other_grads) = results
    assert len(ExampleSet(mixed(), TOKENIZER, 64)) == 1 and count == other_count
    np.testing.assert_allclose(packed, apart, rtol=1e-6)
    for name in grads:                          # float32 sums in another order, against the largest of the parameter
        np.testing.assert_allclose(grads[name], other_grads[name], 0, 2e-6 * max(1, np.abs(grads[name]).max()), err_msg=name)


def test_in_a_pack_positions_start_anew_and_nobody_sees_another():
    examples = ExampleSet(mixed(), TOKENIZER, 128)
    (row,), batch = examples.rows, examples.batch([0])
    lengths = [len(examples.tokens[i]) for i in row]
    assert batch.positions[0].tolist() == [t for length in lengths for t in range(length)]
    starts = np.repeat(np.cumsum([0, *lengths[:-1]]), lengths)
    assert (batch.first[0] == starts).all() and (batch.last[0] == np.arange(sum(lengths))).all()


@given(st.lists(st.integers(1, 20), max_size=60))
@settings(max_examples=100, deadline=None)
def test_packing_holds_every_item_once_within_the_size(lengths):
    rows = pack_rows(lengths, 20)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= 20 for row in rows)
    assert sum(sum(lengths[i] for i in row) <= 10 for row in rows) <= 1     # two half-empty rows would have been one


def test_the_same_examples_give_the_same_rows_and_digest():
    one, two = ExampleSet(mixed(), TOKENIZER, 64), ExampleSet(mixed(), TOKENIZER, 64)
    assert one.rows == two.rows and one.fingerprint == two.fingerprint
    assert one.fingerprint != ExampleSet([*mixed()[:3], Example.completion("yes n", "o")], TOKENIZER, 64).fingerprint


def test_the_view_says_what_becomes_of_every_token():
    examples = ExampleSet([Example.completion("to be", " or not")], TOKENIZER, 16)
    view = examples.view(0)
    shown = list(zip(view.tokens, view.states))
    assert "".join(view.tokens) == "to be or not<|endoftext|>" and len(shown) == 16
    assert ("<|endoftext|>", "supervised") in shown and shown[0][1] == "ignored" and shown[-1] == ("", "padding")
    learned = "".join(token for token, state in shown if state == "supervised")
    assert learned == " or not<|endoftext|>"


def test_left_and_right_padding_of_a_batch_do_not_reach_the_loss():
    model = models.GPT(models.GPTConfig(TOKENIZER.vocab_size, 64, 1, 2, 16))
    documents = [[ids.tolist()] for ids in ExampleSet(mixed(), TOKENIZER, 64, pack=False).tokens]
    losses = [model.loss(Batch.causal(documents, side=side))["language_model"][0].item() for side in ("left", "right")]
    np.testing.assert_allclose(*losses, rtol=1e-6)


def test_prompts_and_chats_are_not_read_backwards():
    backward = copy(TOKENIZER)
    backward.backward = True
    plain = Example.plain("to be")
    assert encode_examples([plain], backward)[0][0].tolist() == TOKENIZER.frame(TOKENIZER.encode("to be")[::-1])
    with pytest.raises(ValueError, match="take a tokenizer with backward=False for prompts and chats"):
        ExampleSet([plain, Example.completion("to be", " or not")], backward, 16)

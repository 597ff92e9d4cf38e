"""Generation: a cache, padding and streaming change no token; sampling and greedy search are those of Hugging Face.

Models are in float64 with large random weights: outputs vary, and two ways to the same token differ by 1e-13 at most, far
less than the gap between the two likeliest tokens.
"""

import warnings
from copy import copy

import numpy as np
import pytest
import tokenizers
from hypothesis import given, settings
from hypothesis import strategies as st

import minitune as mt
from minitune import Tensor, backend, models, nn, tune
from minitune.data import Batch, Tokenizer
from minitune.data.tokenizer import END
from minitune.models.generation import Generative, Sampling
from minitune.nn.cache import KVCache

BYTES = Tokenizer.train([], vocab_size=258)     # every token is one byte, or the end or the padding
TEXT = "déjà vu ☕ 😀, to be or not to be"


def gpt(seed=0, **sizes):
    """A small GPT in float64, its weights and positions so large that it doesn't say the same token again and again."""
    model = models.GPT(models.GPTConfig(**dict(vocab_size=40, block_size=12, n_layer=2, n_head=2, n_embd=32) | sizes))
    return randomised(model, seed)


def randomised(model, seed):
    draw = np.random.default_rng(seed)
    for name, parameter in model.named_parameters():
        scale = 2 if name.startswith("position") else 0.1 if "norm" in name else 0.7
        parameter.data = parameter.data + scale * draw.standard_normal(parameter.shape)
    return model


def with_lora(model, seed=0):
    tune.apply(model, tune.LoRAConfig(r=2, target_modules=["blocks.*.attention.*", "blocks.*.mlp.up"]))
    return randomised(model, seed)


def with_bytes(seed=0, **sizes):
    model = gpt(seed, vocab_size=BYTES.vocab_size, **sizes)
    model.tokenizer = BYTES
    return model


def prompts_of(seed, *lengths, vocab_size=40):
    draw = np.random.default_rng(seed)
    return [draw.integers(0, vocab_size, n).tolist() for n in lengths]


def plainly(model, row, steps, sampling=None, uniforms=None, block=12):
    """One row, the whole window for every token, logits of all of it: generation as its definition says it."""
    window, seen, new = list(row), np.zeros((1, 40), bool), []
    for step in range(steps):
        if len(window) > block:
            window = window[-(block // 2) :]
        seen[0, [*row, *new]] = True
        logits = model(np.array([window])).numpy()[:, -1]
        if sampling is None:
            token = int(logits.argmax())
        else:
            token = int(np.searchsorted(sampling.probabilities(logits, seen)[0].cumsum(), uniforms[step], side="right"))
        window, new = [*window, token], [*new, token]
    return new


# ---- A cache and padding change nothing ---------------------------------------------------------------------------

@pytest.mark.parametrize("adapted", [False, True], ids=["plain", "LoRA"])
@pytest.mark.parametrize("lengths", [(1,), (5,), (12,), (30,), (3, 12, 1, 7, 14)], ids=str)
@pytest.mark.parametrize("n_layer, seed", [(1, 3), (2, 6), (3, 3)])
def test_tokens_are_those_of_reading_each_row_alone_and_as_a_whole(n_layer, seed, lengths, adapted):
    model = gpt(seed, n_layer=n_layer)
    model = with_lora(model, seed) if adapted else model
    prompts = prompts_of(seed, *lengths)
    expected = [plainly(model, prompt, 40) for prompt in prompts]          # more than three times the block size
    assert all(len(set(row)) >= 5 for row in expected)                      # not one token again and again
    assert model.generate_ids(prompts, 40, temperature=0) == expected
    assert model.generate_ids(prompts, 40, temperature=0, cache=False) == expected


@pytest.mark.parametrize("cache", [True, False])
def test_rows_that_end_leave_the_others_as_they_are(cache):
    """Each token that the longest row comes to say is the end once; where that row ends first, the cache is too wide."""
    model, prompts, longest_first = gpt(3), prompts_of(3, 9, 2, 6, 4), 0
    free = [plainly(model, prompt, 30) for prompt in prompts]
    for end in set(free[0]):
        expected = [row[: row.index(end)] if end in row else row for row in free]
        assert model.generate_ids(prompts, 30, temperature=0, end=end, cache=cache) == expected
        longest_first += len(expected[0]) < min(4, *map(len, expected[1:]))
    assert longest_first >= 2


@pytest.mark.parametrize("cache", [True, False])
@pytest.mark.parametrize("sampling", [Sampling(), Sampling(1.5, top_k=9), Sampling(2.5, top_p=0.8, repetition_penalty=1.4)],
                         ids=str)
def test_a_draw_takes_one_number_a_row_a_step_whatever_else_happens(sampling, cache):
    model, prompts = gpt(4), prompts_of(4, 5, 13, 1)
    mt.seed(11)
    uniforms = np.array([backend.random.uniform("sample", 3) for _ in range(40)])
    free = [plainly(model, prompt, 40, sampling, uniforms[:, b]) for b, prompt in enumerate(prompts)]
    end = free[1][9]
    expected = [row[: row.index(end)] if end in row else row for row in free]
    assert len(expected[1]) < max(map(len, expected))
    mt.seed(11)
    assert model.generate_ids(prompts, 40, **vars(sampling), end=end, cache=cache) == expected


@pytest.mark.parametrize("cache", [True, False])
def test_a_block_of_one_token_is_enough(cache):
    model = gpt(5, block_size=1)
    expected = [int(model(np.array([[3]])).numpy().argmax())]
    for _ in range(4):
        expected.append(int(model(np.array([[expected[-1]]])).numpy().argmax()))
    assert model.generate_ids([[8, 3]], 5, temperature=0, cache=cache) == [expected]


def test_an_array_of_ids_is_taken_as_rows_and_no_row_is_no_work():
    model, prompts = gpt(), np.array(prompts_of(0, 4, 4))
    before = prompts.copy()
    assert model.generate_ids(prompts, 5, temperature=0) == model.generate_ids(prompts.tolist(), 5, temperature=0)
    np.testing.assert_array_equal(prompts, before)
    assert model.generate_ids([], 5) == []


def test_with_a_cache_each_token_is_read_once_and_logits_are_made_of_the_last_alone(monkeypatch):
    model, widths, heads = gpt(), [], []
    features, head = model.features, model.head
    monkeypatch.setattr(model, "features", lambda batch, cache=None: widths.append(batch.ids.shape) or features(batch, cache))
    monkeypatch.setattr(model, "head", lambda x: heads.append(x.shape) or head(x))
    model.generate_ids(prompts_of(0, 9, 5), 6, temperature=0)
    assert widths == [(2, 9), (2, 1), (2, 1), (2, 1), (2, 6 + 3), (2, 1)]    # 13 tokens: 6 are left, the other row has 9
    assert set(heads) == {(2, 32)}
    widths.clear()
    model.generate_ids(prompts_of(0, 9), 3, cache=False)
    assert widths == [(1, 9), (1, 10), (1, 11)]


# ---- The cache by itself ------------------------------------------------------------------------------------------

def test_a_cache_is_written_in_place():
    cache, layer = KVCache(6), nn.Module()
    k, v = (Tensor(np.random.default_rng(i).standard_normal((2, 3, 2, 4))) for i in range(2))
    first = cache.append(layer, k, v)
    second = cache.append(layer, v, k)
    assert second[0].shape == (2, 6, 2, 4) and second[0].dtype == np.float64
    for before, after, parts in zip(first, second, ((k, v), (v, k))):
        assert np.shares_memory(before.data, after.data)
        np.testing.assert_array_equal(after.data, np.concatenate([part.data for part in parts], 1))
    with pytest.raises(ValueError, match="KVCache: its rows hold 6 tokens, got 6 and 3 more. Make a new one"):
        cache.append(layer, k, v)
    other, _ = cache.append(nn.Module(), k, v)
    assert other.shape == (2, 3, 2, 4)          # another layer has rows of its own


def test_a_cache_is_for_use_without_gradients():
    model = gpt()
    with pytest.raises(RuntimeError, match="KVCache: it is written in place, .* Use it inside no_grad()"):
        model.features(Batch.of_ids(np.array([[1, 2]])), KVCache(12))


def test_a_prompt_may_be_read_in_parts():
    model, batch = gpt(), Batch.causal([[[3, 1, 4, 1, 5]], [[9, 2]]], side="left")
    cache = KVCache(5)
    with model.evaluating():
        arrays = [batch.ids, batch.positions, batch.first, batch.last, batch.targets]
        parts = [model.features(Batch(*(array[:, part] for array in arrays)), cache).numpy()
                 for part in (slice(0, 2), slice(2, 3), slice(3, 5))]
    np.testing.assert_allclose(np.concatenate(parts, 1), model.features(batch).numpy(), 1e-10, 1e-12)   # some roundings


# ---- Sampling -----------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("sampling", [Sampling(), Sampling(top_k=5), Sampling(0.3, top_p=0.7)], ids=str)
def test_the_token_is_where_the_summed_probabilities_pass_the_number(sampling):
    logits = np.random.default_rng(0).standard_normal((1, 30)).repeat(200, 0)
    seen = np.zeros(logits.shape, bool)
    p = sampling.probabilities(logits, seen)[0]
    assert p.sum() == pytest.approx(1, abs=1e-12)
    uniform = np.append(np.linspace(0, 1, 199, endpoint=False), 1 - 2**-24)
    tokens = sampling.choose(logits, seen, uniform)
    edges = np.append(0, p.cumsum())
    assert (edges[tokens] <= uniform).all() and (uniform < edges[tokens + 1]).all()
    assert (p[tokens] > 0).all() and set(tokens) >= set(np.flatnonzero(p > 0.01))


@pytest.mark.parametrize("top_p, kept", [(0.4, 1), (0.5, 1), (0.51, 2), (0.75, 2), (0.76, 3), (1.0, 4), (1e-9, 1)])
def test_top_p_keeps_the_smallest_set_that_reaches_it(top_p, kept):
    logits = np.log([[0.125, 0.5, 0.125, 0.25]])
    p = Sampling(top_p=top_p).probabilities(logits, np.zeros((1, 4), bool))
    assert (p > 0).sum() == kept and p[0, 1] == p.max() and p.sum() == pytest.approx(1, abs=1e-12)


def test_the_repetition_penalty_makes_positive_and_negative_logits_less_likely():
    seen = np.array([[True, True, False, False]])
    p = Sampling(repetition_penalty=2.0).probabilities(np.array([[2.0, -2.0, 2.0, -2.0]]), seen)
    np.testing.assert_allclose(np.log(p[0]) - np.log(p[0, 2]), [-1, -6, 0, -4], atol=1e-12)


def test_greedy_takes_the_likeliest_and_no_random_number():
    counters = dict(backend.random.counters)
    p = Sampling(temperature=0).probabilities(np.array([[1.0, 3.0, 2.0]]), np.zeros((1, 3), bool))
    np.testing.assert_array_equal(p, [[0, 1, 0]])
    model = gpt()
    counters = dict(backend.random.counters)
    model.generate_ids([[1]], 3, temperature=0)
    assert backend.random.counters == counters


def test_a_seed_repeats_what_was_drawn():
    model = with_bytes()
    mt.seed(5)
    once, next_one = model.generate("To", 30), model.generate("To", 30)
    mt.seed(5)
    assert model.generate("To", 30) == once != next_one


def test_banned_ids_are_never_chosen():
    model = gpt(6)
    free = model.generate_ids([[1]], 30, temperature=0)[0]
    banned = free[:3]
    new = model.generate_ids([[1]], 30, temperature=0, banned=banned)[0]
    assert len(new) == 30 and not set(new) & set(banned)


# ---- Against transformers -----------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def transformers():
    pytest.importorskip("torch", reason="PyTorch, on which transformers runs, is not installed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")         # what another library's import deprecates is not ours to mend
        module = pytest.importorskip("transformers", reason="transformers, the oracle, is not installed")
    module.logging.set_verbosity_error()
    module.logging.disable_progress_bar()
    return module


@pytest.mark.parametrize("repetition_penalty", [1.0, 1.3])
@pytest.mark.parametrize("seed", range(2))
def test_greedy_search_is_that_of_transformers(tmp_path, transformers, seed, repetition_penalty):
    import torch
    gpt(seed, block_size=40).save_pretrained(tmp_path)
    ours, theirs = models.from_pretrained(tmp_path), transformers.GPT2LMHeadModel.from_pretrained(tmp_path).double().eval()
    for parameter in ours.parameters():
        parameter.data = parameter.data.astype(np.float64)
    prompts = prompts_of(seed, 3, 9, 6)

    def generated_there(rows):
        batch = Batch.causal([[row] for row in rows], side="left")
        new = theirs.generate(torch.tensor(batch.ids), attention_mask=torch.tensor(batch.valid.astype(int)), max_new_tokens=25,
                              do_sample=False, repetition_penalty=repetition_penalty, pad_token_id=0)
        return new[:, batch.ids.shape[1] :].tolist()

    expected = [new for prompt in prompts for new in generated_there([prompt])]
    assert all(len(set(row)) > 3 for row in expected)
    new = ours.generate_ids(prompts, 25, temperature=0, repetition_penalty=repetition_penalty)
    assert new == expected
    if repetition_penalty == 1:                 # the penalty there counts padding among the tokens that occurred
        assert new == generated_there(prompts)


@pytest.mark.parametrize("sampling", [
    Sampling(), Sampling(0.6), Sampling(top_k=7), Sampling(top_k=99), Sampling(top_p=0.8), Sampling(top_p=1.0),
    Sampling(repetition_penalty=1.3), Sampling(repetition_penalty=0.8), Sampling(1.7, 20, 0.9, 1.2),
    Sampling(0.4, 3, 0.3, 2.0)], ids=str)
def test_probabilities_are_those_of_transformers(transformers, sampling):
    import torch
    draw = np.random.default_rng(0)
    logits, ids = 3 * draw.standard_normal((8, 50)), draw.integers(0, 50, (8, 12))
    seen = np.zeros(logits.shape, bool)
    np.put_along_axis(seen, ids, True, -1)
    steps = [transformers.RepetitionPenaltyLogitsProcessor(sampling.repetition_penalty),
             transformers.TemperatureLogitsWarper(sampling.temperature)]
    steps += [transformers.TopKLogitsWarper(sampling.top_k)] if sampling.top_k else []
    steps += [transformers.TopPLogitsWarper(sampling.top_p)] if sampling.top_p else []
    scores = torch.tensor(logits)
    for step in steps:
        scores = step(torch.tensor(ids), scores)
    np.testing.assert_allclose(sampling.probabilities(logits, seen), scores.softmax(-1).numpy(), 0, 1e-12)


# ---- Texts --------------------------------------------------------------------------------------------------------

class Scripted(nn.Module, Generative):
    """Says what it was told to say, token by token: the least a model must have to generate."""

    def __init__(self, script, tokenizer=BYTES, vocab_size=None):
        self.config = models.GPTConfig(vocab_size or tokenizer.vocab_size, 1000, 1, 1, 1)
        self.tokenizer, self.script, self.step = tokenizer, script, 0

    def features(self, batch, cache=None):
        self.step += 1
        row = np.arange(self.config.vocab_size, dtype=np.float32) / 1000       # higher ids are the second choice
        row[self.script[(self.step - 1) % len(self.script)]] = 9
        return Tensor(np.broadcast_to(row, (*batch.ids.shape, row.size)))

    def head(self, x):
        return x


def said(script, tokenizer=BYTES, n=None, **choices):
    """The pieces in which a scripted text is streamed, after checking that they are what is generated as a whole."""
    pieces = list(Scripted(script, tokenizer).stream("a", n or len(script), temperature=0, **choices))
    assert Scripted(script, tokenizer).generate("a", n or len(script), temperature=0, **choices) == "".join(pieces)
    return pieces


def test_a_character_cut_into_tokens_is_streamed_whole():
    script = BYTES.encode(TEXT)
    assert len(script) > len(TEXT) + 5
    assert said(script) == list(TEXT)


@pytest.mark.parametrize("n", range(1, 8))
def test_a_character_that_stays_half_is_shown_at_the_end(n):
    script = BYTES.encode("a☕😀")
    assert "".join(said(script, n=n)) == BYTES.decode(script[:n])


def test_bytes_that_are_no_text_do_not_stop_the_stream():
    script = [*BYTES.encode("☕")[1:], *BYTES.encode("ab☕")[:3], *BYTES.encode("cd")]
    assert "".join(said(script)) == BYTES.decode(script)
    assert "".join(said(script, stop="bc")) == BYTES.decode(script)
    assert "".join(said(script, stop="c")) == BYTES.decode(script)[:-2]


@pytest.mark.parametrize("stop, pieces", [
    ("not", ["t", "o", " ", "b", "e", " ", "o", "r", " "]),
    (("xyz", "be"), ["t", "o", " "]),
    ("to be or not to be!", ["to be or not to be"]),                        # held back while it could still come
    ("t", []), ("☕", list("to be or not to be"))])
def test_a_stop_text_ends_the_text_and_no_part_of_it_is_shown(stop, pieces):
    script = BYTES.encode("to be or not to be")
    assert said(script, stop=stop) == pieces


def test_what_turned_out_to_be_no_stop_text_is_shown():
    assert said(BYTES.encode("aabaac"), stop="aac") == ["aab"]
    assert said(BYTES.encode("aabaad"), stop="aac") == ["aab", "aad"]
    assert said(BYTES.encode("xaby"), stop=("xaby", "ab")) == ["x"]         # ends as soon as one is there


def test_a_stop_text_cut_across_the_borders_of_longer_tokens():
    tokenizer = Tokenizer.train(["lower lowest END of"] * 20, vocab_size=280)
    script = tokenizer.encode("lower lowest END of lower")
    assert len(script) < 10 and 1 < len(tokenizer.encode("st E"))
    assert said(script, tokenizer) and "".join(said(script, tokenizer)) == "lower lowest END of lower"
    assert "".join(said(script, tokenizer, stop="st E")) == "lower lowe"
    assert said(script, tokenizer, stop=("we", "o")) == ["l"] and tokenizer.encode("lower") == script[:1]   # both in one token


def test_a_tokenizer_that_joins_words_by_spaces_keeps_them():
    """Decoded alone, its tokens have no space before them: pieces must not lose it."""
    rules = tokenizers.Tokenizer(tokenizers.models.WordLevel({"▁to": 0, "▁be": 1, "▁or": 2, END: 3}, "▁or"))
    rules.pre_tokenizer, rules.decoder = tokenizers.pre_tokenizers.Metaspace(), tokenizers.decoders.Metaspace()
    rules.add_special_tokens([END])
    tokenizer = Tokenizer(rules)
    assert tokenizer.decode([1]) == "be" and tokenizer.encode("to") == [0]
    assert list(Scripted([1, 2, 0], tokenizer).stream("to", 3, temperature=0)) == [" be", " or", " to"]
    assert list(Scripted([1, 2, 0], tokenizer).stream("", 3, temperature=0)) == ["be", " or", " to"]


def reading_backward(tokenizer):
    backward = copy(tokenizer)
    backward.backward = True
    return backward


def test_a_model_that_reads_backwards_writes_what_comes_before_in_reading_order():
    backward = reading_backward(BYTES)
    script = backward.encode(TEXT)
    assert said(script, backward) == [TEXT] and script == BYTES.encode(TEXT)[::-1]      # nothing is known to come first before
    assert said(script, backward, n=9) == [TEXT[-9:]]
    half = backward.encode("☕ab")[:4]           # two of the three bytes of a character
    assert said(half, backward) == [BYTES.decode(half[::-1])]
    assert said(backward.encode("no, to be"), backward, stop=("no", ", ")) == ["to be"]
    assert said(backward.encode("no, to be"), backward, stop="x") == ["no, to be"]
    model = Scripted(backward.encode("one. two. three"), backward)
    assert model.generate("a", 16, temperature=0, stop=".") == " three" and model.step == 7


def test_a_list_of_texts_before_is_that_of_each_alone():
    model = with_bytes(7)
    model.tokenizer = reading_backward(BYTES)
    prompts = ["to be", "", "☕"]
    texts = [model.generate(prompt, 20, temperature=0) for prompt in prompts]
    assert model.generate(prompts, 20, temperature=0) == texts
    (ids,) = model.generate_ids([BYTES.encode("to be")[::-1]], 20, temperature=0, end=BYTES.end, banned=[BYTES.pad])
    assert texts[0] == BYTES.decode(ids[::-1])


def test_words_joined_by_spaces_keep_them_where_they_are_written_backwards():
    rules = tokenizers.Tokenizer(tokenizers.models.WordLevel({"▁to": 0, "▁be": 1, "▁or": 2, END: 3}, "▁or"))
    rules.pre_tokenizer, rules.decoder = tokenizers.pre_tokenizers.Metaspace(), tokenizers.decoders.Metaspace()
    rules.add_special_tokens([END])
    tokenizer = reading_backward(Tokenizer(rules))
    assert Scripted([1, 2], tokenizer).generate("to", 2, temperature=0) == "or be "


def test_no_token_is_made_after_a_stop_text():
    model = Scripted(BYTES.encode("one. two. three."))
    assert model.generate("a", 16, temperature=0, stop=".") == "one" and model.step == 4


def test_a_batch_goes_on_until_its_last_row_has_stopped():
    """Greedy rows of a model, each against itself alone, and against its text without stops, cut."""
    model, prompts = with_bytes(7), ["to be", "or", "not to be", "", "☕"]
    free = [model.generate(prompt, 40, temperature=0) for prompt in prompts]
    stop = free[0][9], free[2][20]
    texts = model.generate(prompts, 40, temperature=0, stop=stop)
    assert texts == [model.generate(prompt, 40, temperature=0, stop=stop) for prompt in prompts]
    assert texts == [text[: min([text.find(s) % 100 for s in stop] + [40])] for text in free]
    assert len(set(map(len, texts))) > 2


MODEL = with_bytes(8, n_layer=1, block_size=8)


@settings(max_examples=60, deadline=None)
@given(prompt=st.text("ab☕", max_size=12), n=st.integers(1, 25), seed=st.integers(0, 9),
       places=st.lists(st.integers(0, 24), max_size=3), length=st.integers(1, 3), chosen=st.fixed_dictionaries(dict(
           temperature=st.sampled_from([0, 0.4, 1.0]), top_k=st.sampled_from([None, 1, 30]), cache=st.booleans(),
           top_p=st.sampled_from([None, 0.5]), repetition_penalty=st.sampled_from([1.0, 1.5]))))
def test_the_joined_stream_is_the_text_generated_and_ends_at_the_first_stop(prompt, n, seed, places, length, chosen):
    mt.seed(seed)
    (ids,) = MODEL.generate_ids([BYTES.encode(prompt) or [BYTES.end]], n, **chosen, end=BYTES.end, banned=[BYTES.pad])
    free = BYTES.decode(ids)
    stop = [free[at : at + length] for at in places if free[at : at + length]]      # stop texts that do occur
    mt.seed(seed)
    pieces = list(MODEL.stream(prompt, n, **chosen, stop=stop))
    mt.seed(seed)
    assert "".join(pieces) == MODEL.generate(prompt, n, **chosen, stop=stop)
    assert all(pieces) and "".join(pieces) == cut(ids, stop)


def cut(ids, stop):
    """The text of ids up to the first stop text, looked for after every token in all that is certain."""
    for n in range(1, len(ids) + 1):
        text = BYTES.decode(ids[:n])
        found = [text.find(s) for s in stop if s in (text if n == len(ids) else text.rstrip("\ufffd"))]
        if found:
            return text[: min(found)]
    return BYTES.decode(ids)


def test_a_list_of_prompts_gives_a_list_and_an_empty_prompt_starts_from_the_end_token():
    model = with_bytes()
    one = model.generate("to be", 10, temperature=0)
    assert model.generate(["to be"], 10, temperature=0) == [one] and model.generate([], 10) == []
    model.tokenizer = copy(BYTES)
    model.tokenizer.end = 65                    # another than 0
    (new,) = model.generate_ids([[65]], 10, temperature=0, end=65, banned=[BYTES.pad])
    assert model.generate(("to be", ""), 10, temperature=0) == [one, BYTES.decode(new)]


def test_the_end_token_ends_a_text_and_is_not_in_it():
    assert said([*BYTES.encode("ab"), BYTES.end, *BYTES.encode("cd")]) == ["a", "b"]


def test_padding_and_ids_that_are_no_token_are_never_generated():
    """Here the script wishes for padding, and the embedding has more rows than there are tokens."""
    model = Scripted([BYTES.pad, 259, 260], vocab_size=261)
    text = model.generate("a", 3, temperature=0)
    assert text == BYTES.decode([257] * 3) and BYTES.pad != 257 and model.step == 3


# ---- The model is left as it was ----------------------------------------------------------------------------------

def modes(model):
    return [module.training for _, module in model.named_modules()] + [backend.mode.recording]


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_in_its_own_mode_between_two_pieces_and_after_an_abandoned_stream(training):
    model = with_bytes(dropout=0.5).train(training)
    model.blocks[0].train(not training)         # parts may differ
    before = modes(model)
    stream = model.stream("to be", 30, temperature=0)
    pieces = [next(stream), next(stream)]
    assert modes(model) == before and True in before
    stream.close()
    assert modes(model) == before
    whole = model.generate("to be", 30, temperature=0)
    assert modes(model) == before and whole.startswith("".join(pieces))
    assert model.generate("to be", 30, temperature=0) == whole              # dropout was off


def test_logits_that_are_not_finite_are_told_and_the_mode_comes_back():
    model = with_bytes()
    model.norm.bias.data[0] = np.nan
    before = modes(model)
    with pytest.raises(FloatingPointError, match="generate: the model's logits are not finite. Did its training diverge?"):
        model.generate("to be")
    assert modes(model) == before


# ---- Errors -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("choice, words", [
    (dict(temperature=-0.1), r"temperature must be 0 \(the likeliest token\) or more, got -0.1"),
    (dict(temperature=float("nan")), "temperature must be 0 .* got nan"),
    (dict(top_k=0), "top_k must be a whole number from 1, got 0. None keeps every token"),
    (dict(top_k=2.5), "top_k must be a whole number from 1, got 2.5"),
    (dict(top_p=0.0), r"top_p must be in \(0, 1\], got 0.0. Is it a percentage?"),
    (dict(top_p=90), r"top_p must be in \(0, 1\], got 90"),
    (dict(repetition_penalty=0), "repetition_penalty must be more than 0, got 0. 1 is none"),
    (dict(max_new_tokens=0), "max_new_tokens must be a whole number from 1, got 0"),
    (dict(max_new_tokens=2.0), "max_new_tokens must be a whole number from 1, got 2.0"),
    (dict(stop=""), r"stop must be texts of at least one character, got \('',\). \(\) stops at none"),
    (dict(stop=["a", ""]), "stop must be texts of at least one character"),
    (dict(stop=[3]), "stop must be texts of at least one character")], ids=str)
@pytest.mark.parametrize("call", ["generate", "stream"])
def test_settings_out_of_range_are_told_at_the_call(call, choice, words):
    with pytest.raises(ValueError, match=f"generate: {words}"):
        getattr(with_bytes(), call)("to be", **choice)


@pytest.mark.parametrize("call", ["generate", "stream"])
def test_a_model_without_tokenizer_says_so(call):
    with pytest.raises(ValueError, match="generate: the model has no tokenizer. Set model.tokenizer, or give ids to"):
        getattr(gpt(), call)("to be")


@pytest.mark.parametrize("prompt", [5, None, [1, 2], ["a", None], np.array([[1, 2]]), b"to be"], ids=repr)
def test_a_prompt_that_is_no_text_is_told(prompt):
    with pytest.raises(TypeError, match=r"generate: a prompt must be a text or chat_prompt.* Ids go to model.generate_ids"):
        with_bytes().generate(prompt)


def test_a_stream_is_of_one_text():
    with pytest.raises(TypeError, match=r"generate: a prompt must be a text or chat_prompt\(messages\), got \['a', 'b'\]"):
        with_bytes().stream(["a", "b"])


@pytest.mark.parametrize("prompts, error, words", [
    ([[1, 40]], ValueError, r"ids must lie in 0 .. 39, got 1 .. 40 in row 0. Was the text encoded with another tokenizer?"),
    ([[1], [-1, 2]], ValueError, "ids must lie in 0 .. 39, got -1 .. 2 in row 1"),
    ([[1], []], ValueError, "row 1 is empty. Begin with the end token, which stands between documents"),
    ([1, 2], TypeError, r"expected rows of integer ids, as in \[\[5, 6, 7\]\], got \[1, 2\]"),
    (["to", "be"], TypeError, r"expected rows of integer ids, as in \[\[5, 6, 7\]\], got \['to'"),
    ([[1.5]], TypeError, "expected rows of integer ids")], ids=str)
def test_prompts_that_are_no_rows_of_ids_are_told(prompts, error, words):
    with pytest.raises(error, match=f"generate: {words}"):
        gpt().generate_ids(prompts)

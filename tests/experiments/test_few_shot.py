"""few_shot: what the prompt says, how labels are scored and calibrated, and a tiny model that continues a planted pattern."""

import numpy as np
import pytest

import minitune as mt
from minitune import models, tune
from minitune.data import LanguageModelSet, Split, Tokenizer
from minitune.experiments.few_shot import FewShot, few_shot, log_likelihoods
from minitune.train import Trainer

TEMPLATE = "{text} is: {label}\n"
WORDS = {"sea": "wave tide shell boat", "wood": "tree leaf bark moss"}      # what the words of a text decide, as in `toy`
LABELS = tuple(WORDS)


@pytest.fixture(scope="module")
def tokenizer():
    words = " ".join(" ".join(WORDS.values()).split() + list(WORDS))
    return Tokenizer.train([f"{words} is: sea\n is: wood\nthe sea at last\n"] * 10, vocab_size=330)


def gpt(tokenizer, block_size=64, seed=0):
    mt.seed(seed)
    model = models.GPT(models.GPTConfig(tokenizer.vocab_size, block_size, 2, 2, 32))
    draw = np.random.default_rng(seed)
    for p in model.parameters():                # so large that the labels differ
        p.data = p.data + 0.2 * draw.standard_normal(p.shape).astype(np.float32)
    model.tokenizer = tokenizer
    return model


def by_hand(model, text):
    """The log-probability of each token of a text after those before it, from all logits: (T - 1,)."""
    ids = np.array([text])
    with model.evaluating():
        logits = model(ids).numpy()[0].astype(np.float64)
    shares = np.exp(logits - logits.max(-1, keepdims=True))
    return np.log(shares / shares.sum(-1, keepdims=True))[np.arange(len(text) - 1), text[1:]]


# float32: the same sums in rows of other lengths, some roundings of 6e-8 of logits about 10
CLOSE = dict(rtol=1e-4, atol=1e-4)


# ---- What is asked -------------------------------------------------------------------------------------------------

def test_the_prompt_is_the_examples_in_the_template_then_the_text_then_each_label(tokenizer, toy):
    model, settings = gpt(tokenizer), FewShot(k=2, template=TEMPLATE, normalize=None, text_tokens=3)
    found = few_shot(model, toy.train, toy.test.subset([0, 1]), LABELS, settings)
    encode = tokenizer.encode
    prompt = []
    for row in found.examples:
        prompt += encode(toy.train.texts[row])[:3] + encode(" is:") + encode(" " + LABELS[toy.train.labels[row]]) + encode("\n")
    for n, text in enumerate(toy.test.texts[:2]):
        for c, label in enumerate(LABELS):
            ids = prompt + encode(text)[:3] + encode(" is:") + encode(" " + label)
            expected = by_hand(model, ids)[-len(encode(" " + label)):].sum()
            np.testing.assert_allclose(found.log_likelihoods[n, c], expected, **CLOSE)
    shares = np.exp(found.log_likelihoods)
    np.testing.assert_allclose(found.probabilities, shares / shares.sum(1, keepdims=True), rtol=1e-12)
    np.testing.assert_array_equal(found.predictions, found.probabilities.argmax(1))
    assert found.content_free is None and found.probabilities.shape == (2, 2)


@pytest.mark.parametrize("k, counts", [(0, [0, 0]), (1, None), (2, [1, 1]), (5, None), (6, [3, 3])])
def test_examples_are_balanced_nested_and_the_seeds(k, counts, tokenizer, toy):
    model = gpt(tokenizer)

    def examples(k, seed=0):
        return few_shot(model, toy.train, toy.test.subset([0]), LABELS, FewShot(k, TEMPLATE, text_tokens=1, seed=seed)).examples

    rows = examples(k)
    assert len(rows) == k == len(set(rows)) and rows.tolist() == examples(7)[:k].tolist()
    found = np.bincount(toy.train.labels[rows], minlength=2)
    assert found.tolist() == counts or counts is None and abs(found[0] - found[1]) == 1
    assert k == 0 or any(examples(k, seed).tolist() != rows.tolist() for seed in range(1, 4))


def test_without_examples_the_text_alone_is_read_and_an_empty_one_after_the_end_token(tokenizer, toy):
    model = gpt(tokenizer)
    settings = FewShot(k=0, template="{text}{label}", normalize=None)
    found = few_shot(model, toy.train, Split(["wave tide", ""]), LABELS, settings)
    for n, before in enumerate([tokenizer.encode("wave tide"), [tokenizer.end]]):
        for c, label in enumerate(LABELS):
            ids = tokenizer.encode(label)
            np.testing.assert_allclose(found.log_likelihoods[n, c], by_hand(model, before + ids)[-len(ids):].sum(), **CLOSE)


def test_labels_of_several_tokens_are_compared_a_token_or_a_word(tokenizer, toy):
    model, labels = gpt(tokenizer), ("sea", "the sea at last")
    tokens = [len(tokenizer.encode(" " + label)) for label in labels]
    assert tokens[1] > 1
    sums, a_token, a_word = (
        few_shot(model, toy.train, toy.test.subset([3]), labels, FewShot(2, TEMPLATE, normalize)).log_likelihoods
        for normalize in (None, "token", "word"))
    np.testing.assert_allclose(a_token, sums / tokens, rtol=1e-12)
    np.testing.assert_allclose(a_word, sums / [1, 4], rtol=1e-12)


@pytest.mark.parametrize("make", ["GPT", "Llama", "AWD-LSTM", "LoRA", "prefix", "prompt"])
def test_a_prompt_that_is_read_once_gives_what_it_gives_in_every_row(make, tokenizer):
    mt.seed(0)
    V = tokenizer.vocab_size
    model = {"Llama": lambda: models.Llama(models.LlamaConfig(V, 32, 2, 2, 16)),
             "AWD-LSTM": lambda: models.AWDLSTM(models.AWDLSTMConfig(V, n_embd=6, n_hidden=7, n_layer=2))}.get(
                 make, lambda: gpt(tokenizer, 32))()
    if method := {"LoRA": tune.LoRAConfig(r=2), "prefix": tune.PrefixConfig(3), "prompt": tune.PromptConfig(3)}.get(make):
        tune.apply(model, method)
    prompt, rows = [5, 6, 7, 8], [([9, 10], [11]), ([12], [13, 14, 15]), ([16, 17, 18], [19, 20])]
    with model.evaluating():
        cache = model.new_cache(32)
        model.features(model.batch_of(np.array([prompt])), cache)
        shared = [log_likelihoods(model, rows, len(prompt), cache) for _ in range(2)]       # the cache is as it was
        whole = log_likelihoods(model, [(prompt + context, label) for context, label in rows])
    np.testing.assert_array_equal(*shared)
    np.testing.assert_allclose(shared[0], whole, **CLOSE)
    if make == "GPT":
        np.testing.assert_allclose(whole[1], by_hand(model, prompt + [12, 13, 14, 15])[-3:].sum(), **CLOSE)


def test_batches_of_any_size_give_the_same_and_the_model_stays_as_it_is(tokenizer, toy):
    model = gpt(tokenizer)
    weights = {name: a.copy() for name, a in model.state_dict().items()}
    one, many = (few_shot(model, toy.train, toy.test, LABELS, FewShot(3, TEMPLATE, text_tokens=4, batch_size=size))
                 for size in (1, 50))
    np.testing.assert_allclose(one.log_likelihoods, many.log_likelihoods, **CLOSE)
    assert model.training and all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(np.array_equal(a, weights[name]) for name, a in model.state_dict().items())


# ---- Calibration ---------------------------------------------------------------------------------------------------

def test_calibration_divides_by_what_texts_without_content_give(tokenizer, toy):
    """Zhao et al. 2021, section 5: p(content-free), averaged over its texts, becomes even."""
    model, free = gpt(tokenizer), ("N/A", "")
    settings = FewShot(k=2, template=TEMPLATE, calibrate=True, content_free=free, text_tokens=4)
    found = few_shot(model, toy.train, toy.test, LABELS, settings)
    plain = few_shot(model, toy.train, toy.test, LABELS, FewShot(k=2, template=TEMPLATE, text_tokens=4))
    nothing = few_shot(model, toy.train, Split(list(free)), LABELS, FewShot(k=2, template=TEMPLATE, text_tokens=4))
    p = nothing.probabilities.mean(0)
    np.testing.assert_allclose(found.content_free, p, rtol=1e-6)            # float32 in rows of another length
    odds = plain.probabilities[:, 0] / plain.probabilities[:, 1] * p[1] / p[0]
    np.testing.assert_allclose(found.probabilities[:, 0], odds / (1 + odds), rtol=1e-5)
    np.testing.assert_array_equal(found.predictions, np.where(odds > 1, 0, 1))
    np.testing.assert_allclose(found.probabilities.sum(1), 1)
    one = FewShot(k=2, template=TEMPLATE, calibrate=True, content_free=("N/A",))
    even = few_shot(model, toy.train, Split(["N/A"]), LABELS, one).probabilities
    np.testing.assert_allclose(even, 0.5, rtol=1e-6)


def test_calibration_takes_away_what_a_model_prefers_whatever_it_reads(tokenizer, toy):
    """A bias of the logit of " sea" makes every text sea; the odds grow by one factor everywhere, which calibration finds."""
    mt.seed(0)
    model = models.AWDLSTM(models.AWDLSTMConfig(tokenizer.vocab_size, n_embd=6, n_hidden=7, n_layer=2))
    model.tokenizer = tokenizer
    for p in model.parameters():
        p.data = 3 * p.data
    sea, = tokenizer.encode(" sea")             # one token, as " wood" is
    settings = dict(k=2, template=TEMPLATE, text_tokens=4, content_free=("N/A",))
    calibrated = few_shot(model, toy.train, toy.test, LABELS, FewShot(calibrate=True, **settings))
    assert calibrated.predictions.any()
    model.bias.data[sea] += 12
    assert not few_shot(model, toy.train, toy.test, LABELS, FewShot(**settings)).predictions.any()
    again = few_shot(model, toy.train, toy.test, LABELS, FewShot(calibrate=True, **settings))
    np.testing.assert_allclose(again.probabilities, calibrated.probabilities, rtol=1e-4)    # float32 logits about 10
    np.testing.assert_array_equal(again.predictions, calibrated.predictions)


# ---- A planted pattern ---------------------------------------------------------------------------------------------

def test_a_tiny_model_that_has_read_such_prompts_continues_them(tokenizer, toy):
    """Trained on lines of texts and labels as plain text; it never sees a class, and tells those of new texts."""
    draw = np.random.default_rng(0)

    def line():
        label = draw.integers(2)
        return TEMPLATE.format(text=" ".join(draw.choice(list(WORDS.values())[label].split(), 6)), label=LABELS[label])

    documents = [tokenizer.encode("".join(line() for _ in range(5))) for _ in range(200)]
    mt.seed(0)
    model = models.GPT(models.GPTConfig(tokenizer.vocab_size, 64, 1, 2, 32))
    model.tokenizer = tokenizer
    settings = FewShot(k=2, template=TEMPLATE, calibrate=True)
    before = few_shot(model, toy.train, toy.test, LABELS, settings).error(toy.test)
    Trainer(model, LanguageModelSet(documents, 64), steps=200, lr=1e-2, batch_size=8, progress=False).fit()
    found = few_shot(model, toy.train, toy.test, LABELS, settings)
    assert found.error(toy.test) <= 0.1 < 0.3 < before
    assert few_shot(model, toy.train, toy.test, LABELS[::-1], settings).error(toy.test) >= 0.9     # labels are what is read


# ---- Errors --------------------------------------------------------------------------------------------------------

def test_a_prompt_that_outgrows_the_model_says_how_many_examples_fit(tokenizer, toy):
    model = gpt(tokenizer, block_size=48)
    with pytest.raises(ValueError, match=r"the model reads 48 tokens; 20 examples, of \d+ tokens, and the longest text are \d+ "
                                         r"more\. \d of these examples fit, FewShot\(k=\d\); or cut") as told:
        few_shot(model, toy.train, toy.test, LABELS, FewShot(20, TEMPLATE))
    fit = int(str(told.value).split("FewShot(k=")[1][0])
    few_shot(model, toy.train, toy.test, LABELS, FewShot(fit, TEMPLATE))
    with pytest.raises(ValueError, match=rf"{fit} of these examples fit"):
        few_shot(model, toy.train, toy.test, LABELS, FewShot(fit + 1, TEMPLATE))
    few_shot(model, toy.train, toy.test, LABELS, FewShot(fit + 1, TEMPLATE, text_tokens=2))
    with pytest.raises(ValueError, match="No example fits; or cut the texts"):
        few_shot(model, toy.train, Split(["wave " * 60]), LABELS, FewShot(1, TEMPLATE))


@pytest.mark.parametrize("settings, error", [
    (dict(template="{label} {text}"), r"template must hold \{text\} and after it \{label\}, once each"),
    (dict(template="{text}"), "template must hold"), (dict(template="{text} {text} {label}"), "template must hold"),
    (dict(k=-1), "k must be a whole number from 0, got -1"), (dict(k=1.5), "k must be"),
    (dict(batch_size=0), "batch_size must be"), (dict(text_tokens=0), "text_tokens must be a whole number from 1"),
    (dict(normalize="letter"), 'normalize must be "token", "word" or None'),
    (dict(calibrate=True, content_free=()), "calibrate needs at least one text")])
def test_settings_out_of_range_are_refused(settings, error):
    with pytest.raises(ValueError, match="FewShot: " + error):
        FewShot(**settings)


def test_what_cannot_be_asked_is_told(tokenizer, toy):
    model, texts = gpt(tokenizer), toy.test.subset([0])
    with pytest.raises(TypeError, match="expected a model that predicts next tokens, such as a GPT, got Classifier"):
        few_shot(models.Classifier(model, LABELS), toy.train, texts, LABELS)
    with pytest.raises(ValueError, match="41 examples were asked for, and there are 40"):
        few_shot(model, toy.train, texts, LABELS, FewShot(41))
    for split, labels in (toy.unlabelled, LABELS), (toy.train, ("sea",)), (Split(["a"], np.array([2])), LABELS):
        with pytest.raises(ValueError, match="expected a labelled split and a name for each of its labels"):
            few_shot(model, split, texts, labels)
    with pytest.raises(ValueError, match="a label must have at least one token, got ''"):
        few_shot(model, toy.train, texts, ("sea", ""), FewShot(template="{text}{label}"))
    with pytest.raises(ValueError, match="expected the 1 texts that were given"):
        few_shot(model, toy.train, texts, LABELS, FewShot(1)).error(toy.test)
    model.tokenizer = None
    with pytest.raises(ValueError, match="the model needs a tokenizer that reads forwards"):
        few_shot(model, toy.train, texts, LABELS)

"""remap_vocabulary: shared tokens keep their rows bit for bit, new ones take the mean, and the model is whole afterwards."""

import copy

import numpy as np
import pytest
import tokenizers

import minitune as mt
from minitune import models, tune
from minitune.data import Batch, ClassificationSet, LanguageModelSet, MaskedSet, Split, Tokenizer
from minitune.optim import SGD, AdamW

FILMS = ["a slow film about a river", "the film was long and slow", "a river runs through the film"] * 4
NEWS = ["the market fell and the river rose", "a long market day", "slow growth in the market"] * 4
OLD, NEW = (Tokenizer.train(texts, 300, masked=True) for texts in (FILMS, NEWS))
V = OLD.vocab_size


def gpt(tokenizer=OLD, rows=V):
    return with_tokenizer(models.GPT(models.GPTConfig(rows, 16, 1, 2, 8)), tokenizer)


def llama(tied=False):
    return with_tokenizer(models.Llama(models.LlamaConfig(V, 16, 1, 2, 8, tied=tied)), OLD)


def awd_lstm():
    return with_tokenizer(models.AWDLSTM(models.AWDLSTMConfig(V, n_embd=8, n_hidden=12, n_layer=2)), OLD)


def bert():
    return with_tokenizer(models.BERT(models.BERTConfig(V, 16, 1, 2, 8)), OLD)


def with_tokenizer(model, tokenizer):
    model.tokenizer = tokenizer
    draw = np.random.default_rng(0)
    for parameter in model.parameters():        # a bias is 0 at first, and would look remapped whatever happens to it
        parameter.data = parameter.data + draw.standard_normal(parameter.shape).astype(np.float32)
    return model


MODELS = {
    "gpt": gpt, "llama": llama, "llama, tied": lambda: llama(True), "awd_lstm": awd_lstm, "bert": bert,
    "classifier on gpt": lambda: with_tokenizer(models.Classifier(gpt(), ["no", "yes"]), OLD),
    "classifier on llama": lambda: with_tokenizer(models.Classifier(llama(), ["no", "yes"]), OLD),
    "classifier on awd_lstm": lambda: with_tokenizer(models.Classifier(awd_lstm(), ["no", "yes"]), OLD),
    "masked language model": lambda: with_tokenizer(models.MaskedLanguageModel(bert()), OLD),
}
EMBEDDING = "token_embedding.weight"
TABLES = {                                      # the parameters that have a row for each token
    "gpt": {EMBEDDING}, "llama": {EMBEDDING, "lm_head.weight"}, "llama, tied": {EMBEDDING}, "awd_lstm": {EMBEDDING, "bias"},
    "bert": {EMBEDDING}, "classifier on gpt": {f"backbone.{EMBEDDING}"}, "classifier on llama": {f"backbone.{EMBEDDING}"},
    "classifier on awd_lstm": {f"backbone.{EMBEDDING}"}, "masked language model": {f"backbone.{EMBEDDING}", "bias"},
}


def state(model):
    return {name: array.copy() for name, array in model.state_dict().items()}


def a_set(model, tokenizer):
    """What the model is trained on, with these tokens."""
    if isinstance(model, models.Classifier):
        return ClassificationSet.from_split(Split(NEWS[:4], np.array([0, 1, 0, 1])), tokenizer, 16)
    if isinstance(model, models.MaskedLanguageModel):
        return MaskedSet.from_texts(NEWS[:4], tokenizer, 16)
    return LanguageModelSet.from_texts(NEWS, tokenizer, 16)


# ---- The formula ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", MODELS)
def test_shared_tokens_keep_their_rows_and_others_take_the_mean(name):
    model = MODELS[name]()
    before = state(model)
    remapping = tune.remap_vocabulary(model, NEW)
    after, old, new = state(model), OLD.vocabulary, NEW.vocabulary
    assert list(after) == list(before)
    changed = {key for key in after if not np.array_equal(after[key], before[key])}
    assert changed == TABLES[name]
    for key in changed:
        mean = before[key].mean(0, dtype=np.float64).astype(np.float32)
        assert len(after[key]) == NEW.vocab_size and after[key].dtype == np.float32
        for token, i in new.items():
            np.testing.assert_array_equal(after[key][i], before[key][old[token]] if token in old else mean)
    assert (remapping.kept, remapping.size, remapping.before) == (len(old.keys() & new.keys()), len(new), V)
    assert 260 < remapping.kept < remapping.size        # all bytes and special tokens, some words; others are new
    assert any(old[token] != new[token] for token in old.keys() & new.keys())       # ids move
    backbone = getattr(model, "backbone", model)
    assert backbone.config.vocab_size == NEW.vocab_size and model.tokenizer is NEW


@pytest.mark.parametrize("name", MODELS)
def test_a_model_remapped_to_its_own_vocabulary_is_unchanged_bit_for_bit(name):
    model = MODELS[name]()
    before, config = state(model), getattr(model, "backbone", model).config
    remapping = tune.remap_vocabulary(model, copy.deepcopy(OLD))
    assert remapping.kept == remapping.size == V and getattr(model, "backbone", model).config == config
    for key, array in state(model).items():
        np.testing.assert_array_equal(array, before[key])


def test_rows_that_are_no_tokens_count_for_nothing():
    model = gpt(rows=V + 20)
    before = model.token_embedding.weight.data.copy()
    tune.remap_vocabulary(model, NEW)
    fresh = [i for token, i in NEW.vocabulary.items() if token not in OLD.vocabulary]
    mean = before[:V].mean(0, dtype=np.float64).astype(np.float32)
    np.testing.assert_array_equal(model.token_embedding.weight.data[fresh], np.broadcast_to(mean, (len(fresh), 8)))
    assert model.config.vocab_size == NEW.vocab_size


def test_shared_tokens_are_read_as_before():
    """A text of tokens that both have gives the same features, though its ids are others."""
    model, text = gpt(), "a river: a film"
    ids = [[each.vocabulary[letter] for letter in text.replace(" ", "Ġ")] for each in (OLD, NEW)]
    assert ids[0] == ids[1] and (NEW.encode("the") != OLD.encode("the"))    # bytes have the same ids in both
    the = [[each.vocabulary["the"]] for each in (OLD, NEW)]
    assert the[0] != the[1]
    before = model.features(Batch.causal([[the[0] + ids[0]]])).numpy()
    tune.remap_vocabulary(model, NEW)
    np.testing.assert_array_equal(model.features(Batch.causal([[the[1] + ids[1]]])).numpy(), before)


# ---- The model afterwards ------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name", MODELS)
def test_a_remapped_model_trains_saves_and_loads(name, tmp_path):
    model = MODELS[name]()
    tune.remap_vocabulary(model, NEW)
    head = model if hasattr(model, "generate") or hasattr(model, "backbone") else models.Classifier(model, ["no", "yes"])
    dataset = a_set(head, NEW)
    if head is not model:
        dataset.causal = head.causal
    head.check(dataset)
    optimizer, losses = AdamW(head, lr=0.01), []
    for _ in range(8):
        batch = dataset.batch(np.arange(min(4, len(dataset))))
        terms = head.loss(batch).values()
        loss = sum((loss * (weight / count) for loss, count, weight in terms), mt.Tensor(np.float32(0)))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    model.save_pretrained(tmp_path)
    loaded = models.from_pretrained(tmp_path)
    assert loaded.tokenizer.vocabulary == NEW.vocabulary
    for key, array in loaded.state_dict().items():
        np.testing.assert_array_equal(array, model.state_dict()[key])


def test_special_ids_that_were_read_are_the_old_tokenizers_and_go(tmp_path):
    """GPT-2's config.json has a padding id that the new tokenizer has no token for."""
    model = gpt()
    model.special_ids = {"bos_token_id": 290, "eos_token_id": [290, 291], "pad_token_id": 292}
    other = Tokenizer.train(NEWS, 270)
    other.pad = None
    tune.remap_vocabulary(model, other)
    model.save_pretrained(tmp_path)
    tokenizer = models.from_pretrained(tmp_path).tokenizer
    assert tokenizer.end == other.end and models.from_pretrained(tmp_path).special_ids == {
        "bos_token_id": other.end, "eos_token_id": other.end, "pad_token_id": None}


def test_what_is_frozen_stays_so_and_weight_decay_goes_where_it_went():
    model = llama()
    tune.freeze(model, "token_embedding")
    decays = {name: parameter.decays for name, parameter in model.named_parameters()}
    tune.remap_vocabulary(model, NEW)
    assert not model.token_embedding.weight.requires_grad and model.lm_head.weight.requires_grad
    assert {name: parameter.decays for name, parameter in model.named_parameters()} == decays


def test_a_model_that_shared_its_parameters_keeps_its_own_vocabulary():
    base = llama()
    head = models.Classifier(base, ["no", "yes"])
    before = state(base)
    tune.remap_vocabulary(head, NEW)
    assert base.config.vocab_size == V and base.tokenizer is OLD and head.backbone.tokenizer is NEW
    for key, array in state(base).items():
        np.testing.assert_array_equal(array, before[key])
    assert base(np.array([OLD.encode("the")])).shape == (1, 1, V)
    assert head.backbone.norm.weight is base.norm.weight        # all else is shared as before


def test_an_optimizer_made_before_is_refused_by_the_check_of_the_trainer():
    model = gpt()
    optimizer = SGD(model, lr=0.1)
    tune.remap_vocabulary(model, NEW)
    with pytest.raises(ValueError, match="does not hold token_embedding.weight"):
        tune.require_held(model, optimizer)


def test_it_prints_what_was_kept():
    assert str(tune.Remapping(kept=1500, size=2000, before=3000)) == (
        "1,500 of 2,000 tokens (75.0%) keep their rows, 500 start from the mean of 3,000")


# ---- Errors --------------------------------------------------------------------------------------------------------

def unshared():
    """A tokenizer that has only its special tokens in common with others: it knows ten digits by other spellings."""
    rules = tokenizers.Tokenizer(tokenizers.models.WordLevel({f"<{i}>": i for i in range(10)}, unk_token="<0>"))
    rules.add_special_tokens(["<|endoftext|>", "<|padding|>"])
    return Tokenizer(rules)


def backward():
    tokenizer = copy.copy(NEW)
    tokenizer.backward = True
    return tokenizer


def lora_on_the_output():
    model = llama()
    tune.apply(model, tune.LoRAConfig(r=2, lora_alpha=4, target_modules=["lm_head"]))
    return model


@pytest.mark.parametrize("model, tokenizer, error, words", [
    (gpt, lambda: "tokenizer.json", TypeError, "expected a Tokenizer, got str"),
    (gpt, lambda: NEW.vocabulary, TypeError, "expected a Tokenizer, got dict"),
    (gpt, unshared, ValueError, "share no token but special ones"),
    (gpt, backward, ValueError, "has backward=False, the new one backward=True"),
    (lambda: gpt(None), lambda: NEW, ValueError, "the model has no tokenizer"),
    (lambda: models.CNN(models.CNNConfig(8, widths=(4,))), lambda: NEW, TypeError, "expected a model of tokens, got CNN"),
    (lora_on_the_output, lambda: NEW, ValueError, "the embedding or the output matrix has adapters")])
def test_what_cannot_be_remapped_is_told_and_left_alone(model, tokenizer, error, words):
    model = model()
    before, config = model.state_dict(), model.config
    with pytest.raises(error, match=words):
        tune.remap_vocabulary(model, tokenizer())
    assert model.config is config and all(array is before[key] for key, array in model.state_dict().items())

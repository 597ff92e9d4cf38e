"""BERT and Llama by themselves: counts, intervals, recomputation, rotary frequencies, and what their configs refuse."""

import numpy as np
import pytest

import minitune as mt
from minitune import models
from minitune.data import Batch, ClassificationSet
from minitune.models.llama import rope_frequencies

BERT = dict(vocab_size=20, block_size=8, n_layer=2, n_head=2, n_embd=6)
LLAMA = dict(vocab_size=20, block_size=8, n_layer=2, n_head=4, n_embd=16)


def bert(**settings):
    return models.BERT(models.BERTConfig(**BERT | settings))


def llama(**settings):
    return models.Llama(models.LlamaConfig(**LLAMA | settings))


def test_published_counts_of_parameters():
    """BERT base, 109,482,240 with its pooler; Llama 2 7B; Llama 3.2 1B, whose head is its embedding."""
    with mt.nn.shapes_only():
        assert bert(vocab_size=30_522, block_size=512, n_layer=12, n_head=12, n_embd=768).num_parameters() == 109_482_240
        assert llama(vocab_size=32_000, block_size=4096, n_layer=32, n_head=32, n_embd=4096,
                     n_inner=11_008).num_parameters() == 6_738_415_616
        assert llama(vocab_size=128_256, block_size=131_072, n_layer=16, n_head=32, n_embd=2048, n_kv_head=8, n_inner=8192,
                     tied=True).num_parameters() == 1_235_814_400


def test_bert_sees_both_sides_and_llama_the_past_alone():
    ids = np.array([[3, 1, 4, 1, 5]])
    other = ids.copy()
    other[0, 3] = 9
    for model, before in ((bert(), False), (llama(), True)):
        first, second = (model.features(model.batch_of(each)).numpy() for each in (ids, other))
        assert np.array_equal(first[:, :3], second[:, :3]) == before
        assert not np.allclose(first[:, 3:], second[:, 3:])


@pytest.mark.parametrize("model", [bert, llama])
def test_packed_documents_do_not_see_each_other(model):
    model, rows = model(), [[3, 1, 4], [9, 2]]
    packed = Batch.causal([rows])
    if not model.causal:
        packed.last = np.array([[2, 2, 2, 4, 4]])
    features = model.features(packed).numpy()[0]
    for row, part in zip(rows, (slice(0, 3), slice(3, 5))):
        np.testing.assert_allclose(model.features(model.batch_of(np.array([row]))).numpy()[0], features[part], atol=2e-6)


def test_llama_knows_distances_and_not_places():
    model, batch = llama(), Batch.of_ids(np.array([[3, 1, 4]]))
    before = model.features(batch).numpy()
    batch.positions = batch.positions + 4
    np.testing.assert_allclose(model.features(batch).numpy(), before, atol=2e-6)
    batch.positions = batch.positions * 2
    assert not np.allclose(model.features(batch).numpy(), before, atol=1e-6)


@pytest.mark.parametrize("make", [lambda: models.MaskedLanguageModel(bert(dropout=0.2)), llama])
def test_recomputation_gives_the_same_gradients(make):
    def gradients(recompute):
        mt.seed(3)
        model = make()
        model.recompute = recompute
        targets = [[-100, 4, 4, -100]]
        batch = Batch.causal([[[3, 1, 4, 1]]]) if model.causal else Batch.bidirectional([[3, 1, 4, 1]], targets=targets)
        next(iter(model.loss(batch).values()))[0].backward()
        return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}

    plain, again = gradients(False), gradients(True)
    assert plain.keys() == again.keys() and all(np.array_equal(plain[name], again[name]) for name in plain)


def test_rope_frequencies_are_those_of_the_formulas():
    plain = models.LlamaConfig(**LLAMA)
    np.testing.assert_allclose(rope_frequencies(plain), [1, 0.01])                              # 10000^0, 10000^(-2/4)
    linear = models.LlamaConfig(**LLAMA, rope_scaling={"rope_type": "linear", "factor": 4.0})
    np.testing.assert_allclose(rope_frequencies(linear), [0.25, 0.0025])
    scaling = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
               "original_max_position_embeddings": 64}
    scaled = models.LlamaConfig(**LLAMA | dict(n_embd=24), rope_base=100.0, rope_scaling=scaling)
    fast, middle, slow = 100.0 ** (-np.arange(3) / 3)
    turns = 64 * middle / (2 * np.pi)                                                           # 2.2: between 1 and 4
    kept = (turns - 1) / 3
    np.testing.assert_allclose(rope_frequencies(scaled), [fast, middle * (kept + (1 - kept) / 8), slow / 8])


@pytest.mark.parametrize("make, settings, message", [
    (bert, dict(n_layer=0), "BERTConfig: n_layer must be a positive integer, got 0"),
    (bert, dict(n_head=4), "BERTConfig: n_head must divide n_embd, got 4 and 6"),
    (bert, dict(dropout=1.0), r"BERTConfig: dropout must be in \[0, 1\), got 1.0"),
    (bert, dict(n_inner=0, vocab_size=1.5), "vocab_size must be a positive integer, got 1.5; n_inner must be a positive int"),
    (llama, dict(n_kv_head=3), "LlamaConfig: n_kv_head must divide n_head, got 3 and 4"),
    (llama, dict(head_size=3), "LlamaConfig: a head's channels are rotated in pairs, got 3 a head"),
    (llama, dict(rope_scaling={"rope_type": "yarn"}), "rope_scaling must be None or of type 'linear' or 'llama3', got 'yarn'"),
    (llama, dict(rope_base=-1.0), "LlamaConfig: rope_base must be a number above 0, got -1.0"),
    (bert, dict(eps="1e-5"), "BERTConfig: eps must be a number above 0, got '1e-5'"),
    (llama, dict(rope_scaling="linear"), "rope_scaling must be None or as in a config.json, .* got 'linear'"),
    (llama, dict(rope_scaling={"rope_type": "linear", "factor": 0}), "all numbers above 0, got"),
    (llama, dict(rope_scaling={"rope_type": "llama3", "factor": 2, "low_freq_factor": 4, "high_freq_factor": 4,
                               "original_max_position_embeddings": 64}), "low_freq_factor below high_freq_factor, got 4 and 4"),
    (llama, dict(rope_scaling={"rope_type": "linear"}), "rope_scaling of type 'linear' needs 'factor'"),
])
def test_configs_say_what_is_wrong(make, settings, message):
    with pytest.raises(ValueError, match=message):
        make(**settings)


@pytest.mark.parametrize("make, name", [(bert, "BERT"), (llama, "Llama")])
def test_what_a_model_cannot_read_is_told(make, name):
    model = make()
    with pytest.raises(ValueError, match=f"{name}: this model reads at most block_size = 8 tokens a row, got 9"):
        model(np.ones((1, 9), int))
    with pytest.raises(ValueError, match=rf"{name}: token ids must be 0 \.\. 19, the set holds 20"):
        model.check(ClassificationSet([[1, 20]], [0], 2, model.causal))
    assert repr(model).startswith(f"{name}({name}Config(vocab_size=20") and repr(model).endswith("parameters)")


@pytest.mark.parametrize("side", ["left", "right"])
def test_bert_pools_the_first_token_and_no_padding(side):
    model, rows = models.Classifier(bert(), ["a", "b"], "cls"), [[3, 1, 4], [5]]
    batch = Batch.causal([[row] for row in rows], side=side)
    batch.last = np.where(batch.valid, batch.last.max(1, keepdims=True), batch.last)
    alone = np.concatenate([model(np.array([row])).numpy() for row in rows])
    np.testing.assert_allclose(model(batch).numpy(), alone, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("segment", [-1, 2])
def test_a_segment_that_bert_has_not_is_told(segment):
    batch = Batch.bidirectional([[3, 1, 4]], segments=[[0, 1, segment]])
    with pytest.raises(ValueError, match=r"BERT: segments must be 0 \.\. 1, as n_segments is 2, got"):
        bert().features(batch)


def test_bert_without_pooler_pools_nothing():
    assert bert().pooling == "cls" and bert(pooler=False).pooling == "first"
    with pytest.raises(ValueError, match="BERT: this model has no pooler"):
        bert(pooler=False).pool(mt.Tensor(np.zeros((1, 2, 6), np.float32)))

"""Tuning methods on models other than GPT: they know layers, and no model."""

import numpy as np
import pytest

import minitune as mt
from minitune import models, tune
from minitune.data import Batch
from minitune.tune.lora import LoRALinear

ROWS, LABELS = [[3, 1, 4, 1, 5], [9, 2, 6], [5, 7]], [1, 0, 1]


def bert():
    return models.BERT(models.BERTConfig(20, 8, 2, 2, 16))


def llama(tied=False):
    return models.Llama(models.LlamaConfig(20, 8, 2, 4, 16, n_kv_head=2, n_inner=24, tied=tied))


def awd_lstm():
    return models.AWDLSTM(models.AWDLSTMConfig(20, n_embd=6, n_hidden=7, n_layer=2))


def batch_of(model):
    return Batch.causal([[row] for row in ROWS], LABELS) if model.causal else Batch.bidirectional(ROWS, LABELS)


@pytest.mark.parametrize("make, layers", [(bert, 2 * 6 + 1), (llama, 2 * 7)])
def test_lora_adapts_every_linear_layer_of_a_backbone_and_merges(make, layers):
    mt.seed(0)
    model = models.Classifier(make(), ["a", "b"])
    report = tune.apply(model, tune.LoRAConfig(r=2, lora_alpha=4, target_modules="all-linear"))
    adapted = [part for _, part in model.named_modules() if isinstance(part, LoRALinear)]
    assert len(adapted) == layers
    assert report.trainable == sum(2 * sum(part.base.weight.shape) for part in adapted) + model.head.num_parameters()
    for part in adapted:                        # as after training: B is no longer 0
        part.B.data = np.random.default_rng(0).standard_normal(part.B.shape).astype(np.float32) * 0.1
    before = model(batch_of(model)).numpy()
    certificate = tune.merge(model, batch_of(model))
    after = model(batch_of(model)).numpy()
    assert not any(isinstance(part, LoRALinear) for _, part in model.named_modules())
    np.testing.assert_allclose(after, before, rtol=1e-4, atol=1e-5)
    tune.unmerge(model, certificate)
    np.testing.assert_array_equal(model(batch_of(model)).numpy(), before)


def test_all_linear_leaves_the_output_matrix_out_unless_it_is_named():
    """So does PEFT: the output matrix knows tokens, not texts."""
    model = llama()
    tune.apply(model, tune.LoRAConfig(r=2, target_modules="all-linear"))
    assert type(model.lm_head) is mt.nn.Linear
    named = llama()
    tune.apply(named, tune.LoRAConfig(r=2, target_modules=["lm_head"]))
    assert isinstance(named.lm_head, LoRALinear) and type(named.blocks[0].attention.output) is mt.nn.Linear
    named.loss(Batch.causal([[row] for row in ROWS]))["language_model"][0].backward()
    assert named.lm_head.B.grad.any()


@pytest.mark.parametrize("make, names", [
    (bert, ["embeddings", "blocks.0", "blocks.1"]), (llama, ["embeddings", "blocks.0", "blocks.1"]),
    (awd_lstm, ["embeddings", "layers.0", "layers.1"]),
])
def test_what_is_frozen_neither_moves_nor_gets_a_gradient(make, names):
    mt.seed(0)
    model = models.Classifier(make(), ["a", "b"], "mean")
    assert [name for name, _ in model.layer_groups()] == [*names, "head"]
    assert tune.freeze_to(model, -2) == [names[-1], "head"]
    optimizer = mt.optim.AdamW(model, lr=0.1, weight_decay=0.1)
    before = {name: p.data.copy() for name, p in model.named_parameters()}
    model.loss(batch_of(model))["classification"][0].backward()
    tune.audit(model, optimizer)
    optimizer.step()
    for name, parameter in model.named_parameters():
        trained = name.startswith(("head", "backbone.norm", f"backbone.{names[-1]}"))
        assert (parameter.grad is not None) == trained == (not np.array_equal(parameter.data, before[name])), name


@pytest.mark.parametrize("make", [bert, llama])
def test_lora_on_a_head_leaves_the_model_below_as_it_was(make):
    mt.seed(0)
    base = make()
    model = models.Classifier(base, ["a", "b"])
    before = base(batch_of(base)).numpy()
    tune.apply(model, tune.LoRAConfig(r=2))
    for part in model.modules():
        if isinstance(part, LoRALinear):
            part.B.data = part.B.data + 1
    assert not any(isinstance(part, LoRALinear) for part in base.modules())
    np.testing.assert_array_equal(base(batch_of(base)).numpy(), before)
    tune.merge(model)
    np.testing.assert_array_equal(base(batch_of(base)).numpy(), before)


def test_a_model_without_linear_layers_says_that_lora_finds_none():
    with pytest.raises(ValueError, match="LoRAConfig: the backbone has no linear layers"):
        tune.apply(models.Classifier(awd_lstm(), ["a", "b"]), tune.LoRAConfig(r=2))

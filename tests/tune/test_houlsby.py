"""Houlsby's adapters: the layer, its gradients, where it stands, how much it trains."""

import numpy as np
import pytest
from small_models import bert, gpt, in_double, labelled, llama

import minitune as mt
from minitune import models, nn, ops, tune
from minitune.backend import random
from minitune.tensor import Tensor


def small_layer():
    layer = tune.AdapterLinear(nn.Linear(5, 4), bottleneck=3)
    draw = np.random.default_rng(0)
    for parameter in layer.parameters():
        parameter.data = draw.standard_normal(parameter.shape)
    return layer, draw.standard_normal((2, 3, 5)), draw.standard_normal((2, 3, 4))


def test_the_layer_adds_a_small_perceptron_of_what_its_base_gives():
    layer, x, residual = small_layer()
    h = x @ layer.base.weight.data.T + layer.base.bias.data
    down, up = layer.down_project, layer.up_project
    inner = ops.gelu(Tensor(h @ down.weight.data.T + down.bias.data)).numpy()
    expected = h + inner @ up.weight.data.T + up.bias.data
    assert (down.weight.shape, up.weight.shape) == ((3, 4), (4, 3))
    np.testing.assert_allclose(layer(Tensor(x)).numpy(), expected, rtol=1e-12)
    # the residual path goes round the adapter, which does not read it
    np.testing.assert_allclose(layer(Tensor(x), Tensor(residual)).numpy(), expected + residual, rtol=1e-12)


def test_gradients_of_the_layer_agree_with_central_differences():
    layer, x, residual = small_layer()
    names = [name for name, _ in layer.named_parameters()]

    def run(x, residual, *arrays):
        for name, array in zip(names, arrays, strict=True):
            part, _, last = name.rpartition(".")
            setattr(getattr(layer, part), last, array)
        return layer(x, residual)

    mt.gradcheck(run, x, residual, *[p.data for p in layer.parameters()])


@pytest.mark.parametrize("make, norm", [(gpt, 2 * 16), (bert, 2 * 16), (llama, 16)])
def test_two_adapters_a_block_are_counted_as_in_the_paper(make, norm):
    """Houlsby et al. 2019, section 2.1: 2 m C + C + m each; a norm has 2 C, an RMSNorm C."""
    C, m, L = 16, 3, 2
    assert tune.apply(make(), tune.AdapterConfig(m, train_norms=False)).trainable == L * 2 * (2 * C * m + C + m)
    assert tune.apply(make(), tune.AdapterConfig(m)).trainable == L * 2 * (2 * C * m + C + m) + (2 * L + 1) * norm


@pytest.mark.parametrize("bottleneck, millions", [(1, 7.1), (8, 40.1)])
def test_gpt3s_published_counts(bottleneck, millions):
    """Hu et al. 2021, table 4: Adapter-H 7.1M and 40.1M on GPT-3, which has 96 layers of 12,288 channels."""
    with nn.shapes_only():
        model = models.GPT(models.GPTConfig(50_257, 2048, 96, 96, 12_288))
        report = tune.apply(model, tune.AdapterConfig(bottleneck, train_norms=False))
    assert round(report.trainable / 1e6, 1) == millions


@pytest.mark.parametrize("make", [gpt, bert, llama])
def test_adapters_stand_after_attention_and_mlp_before_the_residual_is_added(make):
    model = make()
    tune.apply(model, tune.AdapterConfig(4))
    found = [name for name, part in model.named_modules() if isinstance(part, tune.AdapterLinear)]
    assert found == [f"blocks.{i}.{layer}" for i in range(2) for layer in ("attention.output", "mlp.down")]
    # one whose base gives zeros adds only its bias to the residual path, in a block without norms between
    for part in model.modules():
        if isinstance(part, tune.AdapterLinear):
            for p in part.parameters():
                p.data = np.zeros_like(p.data)
    x = Tensor(np.random.default_rng(0).standard_normal((1, 3, 16)).astype(np.float32))
    part = model.blocks[0].mlp
    part.down.up_project.bias.data += 0.5
    np.testing.assert_allclose(part(x, residual=x).numpy(), x.numpy() + 0.5, rtol=1e-6)


@pytest.mark.parametrize("make", [gpt, bert, llama])
def test_at_the_start_the_model_computes_nearly_what_it_did(make):
    model = in_double(make())
    before = model(labelled(model)).numpy()
    tune.apply(model, tune.AdapterConfig(8))
    after = model(labelled(model)).numpy()
    assert after.dtype == np.float64 and 0 < np.abs(after - before).max() < 0.01 * np.abs(before).max()
    other = in_double(make())
    tune.apply(other, tune.AdapterConfig(8, std=0.0))
    assert not any(p.data.any() for name, p in other.named_parameters() if "_project" in name)


def test_names_and_norms_that_train():
    model = models.Classifier(gpt(), ["no", "yes"])
    tune.apply(model, tune.AdapterConfig(4, target_modules="mlp.down"))
    trained = {name.removeprefix("backbone.") for name, p in model.named_parameters() if p.requires_grad}
    parts = ("weight", "bias")
    assert trained == {
        "head.weight", *(f"norm.{p}" for p in parts),
        *(f"blocks.{i}.{n}_norm.{p}" for i in range(2) for n in ("attention", "mlp") for p in parts),
        *(f"blocks.{i}.mlp.down.{n}_project.{p}" for i in range(2) for n in ("down", "up") for p in parts)}


@pytest.mark.parametrize("settings, error", [
    (dict(bottleneck=0), "AdapterConfig: bottleneck must be an int of at least 1, got 0"),
    (dict(bottleneck=2.5), "AdapterConfig: bottleneck must be"),
    (dict(target_modules="mlp.dwn"), r"AdapterConfig: 'mlp.dwn' matches nothing. Did you mean .*'mlp.down'"),
    (dict(target_modules="mlp_norm"), "means no linear layer")])
def test_settings_that_cannot_work_change_nothing(settings, error):
    model = gpt()
    before, counter = list(model.named_modules()), dict(random.counters)
    with pytest.raises(ValueError, match=error):
        tune.apply(model, tune.AdapterConfig(**settings))
    assert list(model.named_modules()) == before and dict(random.counters) == counter
    assert all(p.requires_grad for p in model.parameters())

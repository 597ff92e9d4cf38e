"""IA3: the layer, its gradients, how it is merged, and PEFT's forward and first update."""

import numpy as np
import pytest
from small_models import TASKS, bert, gpt, labelled, llama, oracle, randomise, result_of

import minitune as mt
from minitune import models, nn, tune
from minitune.optim import AdamW
from minitune.tensor import Tensor


def small_layer(feedforward, bias=True):
    layer = tune.IA3Linear(nn.Linear(5, 4, bias=bias), feedforward)
    draw = np.random.default_rng(0)
    for parameter in layer.parameters():
        parameter.data = draw.standard_normal(parameter.shape)
    return layer, draw.standard_normal((2, 3, 5)), draw.standard_normal((2, 3, 4))


def vectors(model):
    return [part.vector for part in model.modules() if isinstance(part, tune.IA3Linear)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("feedforward", [True, False])
def test_the_layer_scales_what_its_base_gives_or_reads_and_no_residual(feedforward, bias):
    layer, x, residual = small_layer(feedforward, bias)
    W, b, v = layer.base.weight.data, layer.base.bias.data if bias else 0, layer.vector.data
    expected = (x * v) @ W.T + b if feedforward else (x @ W.T + b) * v
    np.testing.assert_allclose(layer(Tensor(x)).numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(layer(Tensor(x), Tensor(residual)).numpy(), expected + residual, rtol=1e-12)
    np.testing.assert_allclose(layer.effective_weight().numpy(), W * v if feedforward else W * v[:, None], rtol=1e-12)
    merged = layer.merged()
    assert type(merged) is nn.Linear and merged.bias is (None if not bias else merged.bias)
    np.testing.assert_allclose(merged(Tensor(x)).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("feedforward", [True, False])
def test_gradients_of_the_layer_agree_with_central_differences(feedforward):
    layer, x, residual = small_layer(feedforward)

    def run(x, vector, weight, bias, residual):
        layer.vector, layer.base.weight, layer.base.bias = vector, weight, bias
        return layer(x, residual)

    mt.gradcheck(run, x, layer.vector.data, layer.base.weight.data, layer.base.bias.data, residual)
    mt.gradcheck(lambda vector: (setattr(layer, "vector", vector), layer.effective_weight())[-1], layer.vector.data)


@pytest.mark.parametrize("make, keys, inner", [(gpt, 16, 64), (bert, 16, 64), (llama, 8, 24)])
def test_a_block_trains_keys_values_and_the_mlps_inner_channels(make, keys, inner):
    """Liu et al. 2022, section 3.3: d_k + d_v + d_ff a block; two key heads of four channels in the Llama."""
    model = make()
    before = model(labelled(model)).numpy()
    assert tune.apply(model, tune.IA3Config()).trainable == 2 * (2 * keys + inner)
    np.testing.assert_array_equal(model(labelled(model)).numpy(), before)           # every vector is 1: not a bit differs
    names = [name for name, part in model.named_modules() if isinstance(part, tune.IA3Linear)]
    assert names == [f"blocks.{i}.{n}" for i in range(2) for n in ("attention.key", "attention.value", "mlp.down")]
    assert not any(p.decays for p in vectors(model))        # decay would pull them to 0, where nothing is left of the base


@pytest.mark.parametrize("make", [gpt, bert, llama])
def test_merged_it_is_the_plain_model_and_unmerged_bit_for_bit_the_adapted_one(make):
    model = models.Classifier(make(), ["no", "yes"])
    tune.apply(model, tune.IA3Config())
    randomise(vectors(model))
    before, batch = model(labelled(model)).numpy(), labelled(model)
    layers = {name: part for name, part in model.named_modules() if isinstance(part, tune.IA3Linear)}
    certificate = tune.merge(model, batch)
    assert not vectors(model) and certificate.gap < 1e-6    # float32: a rounding of each weight, of logits about 0.1
    plain = dict(model.named_modules())
    for name, layer in layers.items():
        vector = layer.vector.data.astype(np.float64)
        scaled = layer.base.weight.data * (vector if layer.feedforward else vector[:, None])
        np.testing.assert_array_equal(plain[name].weight.data, scaled.astype(np.float32))
        assert plain[name].weight.requires_grad is False
    tune.unmerge(model, certificate)
    np.testing.assert_array_equal(model(batch).numpy(), before)


def test_with_powers_of_two_merging_changes_no_bit():
    model = gpt()
    tune.apply(model, tune.IA3Config())
    draw = np.random.default_rng(0)
    for vector in vectors(model):
        vector.data = (2.0 ** draw.integers(-3, 3, vector.shape)).astype(np.float32)
    before = model(labelled(model)).numpy()
    assert tune.merge(model, labelled(model)).gap == 0
    np.testing.assert_array_equal(model(labelled(model)).numpy(), before)


def test_layers_are_chosen_by_patterns():
    model = gpt()
    assert tune.apply(model, tune.IA3Config("value", feedforward_modules=())).trainable == 2 * 16
    layer = model.blocks[0].attention.value
    assert isinstance(layer, tune.IA3Linear) and not layer.feedforward
    assert tune.apply(gpt(), tune.IA3Config("mlp", feedforward_modules="mlp")).trainable == 2 * (16 + 64)


@pytest.mark.parametrize("settings, error", [
    (dict(target_modules="valeu"), "IA3Config: 'valeu' matches nothing. Did you mean .*'value'"),
    (dict(target_modules="key"), r"feedforward_modules mean blocks.0.mlp.down, .*which target_modules do not. Name them")])
def test_settings_that_cannot_work_change_nothing(settings, error):
    model = gpt()
    before = list(model.named_modules())
    with pytest.raises(ValueError, match=error):
        tune.apply(model, tune.IA3Config(**settings))
    assert list(model.named_modules()) == before and all(p.requires_grad for p in model.parameters())


# ---- Against PEFT --------------------------------------------------------------------------------------------------

# PEFT's settings, ours, and which of our layers a vector of PEFT's is for; GPT-2's c_attn has one vector for all three
PATTERNS = {
    "GPT-2": (dict(target_modules=["c_attn", "mlp.c_proj"], feedforward_modules=["mlp.c_proj"], fan_in_fan_out=True),
              tune.IA3Config(["query", "key", "value", "mlp.down"])),
    "BERT": (dict(target_modules=r".*(key|value|\d+\.output\.dense)", feedforward_modules=r".*\d+\.output\.dense"),
             tune.IA3Config()),
    "Llama": (dict(target_modules=["k_proj", "v_proj", "down_proj"], feedforward_modules=["down_proj"]), tune.IA3Config()),
}


def pairs(kind, ours, theirs):
    """(our vectors side by side, PEFT's vector) of each of PEFT's layers."""
    there = [(name, p) for name, p in theirs.named_parameters() if "ia3_l" in name]
    for name, vector in there:
        path = name.split(".")
        block = ours.blocks[int(next(step for step in path if step.isdigit()))]
        layer = path[path.index("ia3_l") - 1]
        here = {"c_attn": [block.attention.query, block.attention.key, block.attention.value] if kind == "GPT-2" else [],
                "key": [block.attention.key], "k_proj": [block.attention.key], "value": [block.attention.value],
                "v_proj": [block.attention.value]}.get(layer, [block.mlp.down])
        yield [part.vector for part in here], vector


@pytest.mark.filterwarnings("ignore::FutureWarning")      # PEFT's use of what Hugging Face has renamed
@pytest.mark.parametrize("kind", PATTERNS)
def test_forward_gradients_first_update_and_merged_model_are_pefts(kind, tmp_path):
    # float64, other orders of the same sums; Hugging Face's Llama computes norms and rotations in float32
    tolerance = dict(rtol=1e-4, atol=1e-4) if kind == "Llama" else dict(rtol=1e-9, atol=1e-9)
    torch, peft, theirs, ours, batch = oracle(kind, tmp_path)
    settings, config = PATTERNS[kind]
    theirs = peft.get_peft_model(theirs, peft.IA3Config(task_type=TASKS[kind], **settings)).eval().double()
    tune.apply(ours, config)
    draw = np.random.default_rng(0)
    vectors = list(pairs(kind, ours, theirs))
    assert sum(len(here) for here, _ in vectors) == len([p for p in ours.parameters() if p.requires_grad])
    for here, there in vectors:
        for p in here:
            p.data = 1 + 0.3 * draw.standard_normal(p.shape)
        there.data = torch.from_numpy(np.concatenate([p.data for p in here])).reshape(there.shape)
    expected, y = result_of(torch, theirs, batch), ours(batch)
    np.testing.assert_allclose(y.numpy()[batch.valid], expected.detach().numpy(), **tolerance)
    grad = draw.standard_normal(expected.shape)
    expected.backward(torch.from_numpy(grad))
    whole = np.zeros(y.shape)
    whole[batch.valid] = grad
    y.backward(whole)
    torch.optim.AdamW([there for _, there in vectors], lr=0.01, weight_decay=0.0).step()
    for here, there in vectors:
        np.testing.assert_allclose(np.concatenate([p.grad for p in here]), there.grad.numpy().ravel(), **tolerance)
    AdamW(ours, lr=0.01, weight_decay=0.0).step()
    for here, there in vectors:
        np.testing.assert_allclose(np.concatenate([p.data for p in here]), there.detach().numpy().ravel(), **tolerance)
    tune.merge(ours)
    merged = result_of(torch, theirs.merge_and_unload(), batch).detach().numpy()
    np.testing.assert_allclose(ours(batch).numpy()[batch.valid], merged, **tolerance)

"""Prefix tuning: what a position sees, its gradients, which batches it takes, and PEFT's forward and first update."""

import numpy as np
import pytest
from small_models import TASKS, awd_lstm, bert, gpt, in_double, labelled, llama, oracle, randomise, result_of

import minitune as mt
from minitune import models, nn, ops, tune
from minitune.backend import random
from minitune.data import Batch, LanguageModelSet
from minitune.optim import AdamW
from minitune.tensor import Tensor


def small_layer(heads=4, kv_heads=2):
    layer = tune.PrefixAttention(nn.Attention(8, heads, kv_heads), 3, std=0.02)
    draw = np.random.default_rng(0)
    for parameter in layer.parameters():
        parameter.data = draw.standard_normal(parameter.shape)
    return layer, draw.standard_normal((2, 4, 8))


FIRST, LAST = np.zeros((2, 4), int), 3 + np.arange(4) + np.zeros((2, 1), int)       # causal, after three learned positions


def prefixes(model):
    return [p for name, p in model.named_parameters() if ".prefix_" in name]


def test_each_position_attends_to_the_learned_keys_and_then_to_its_past():
    layer, x = small_layer(heads=2, kv_heads=2)
    q, k, v = (part(Tensor(x)).numpy().reshape(2, 4, 2, 4) for part in (layer.query, layer.key, layer.value))
    expected = np.zeros((2, 4, 2, 4))
    for b, t, h in np.ndindex(2, 4, 2):
        keys = np.concatenate([layer.prefix_key.data.reshape(3, 2, 4)[:, h], k[b, : t + 1, h]])
        values = np.concatenate([layer.prefix_value.data.reshape(3, 2, 4)[:, h], v[b, : t + 1, h]])
        weights = np.exp(keys @ q[b, t, h] / 2)             # sqrt(D) = 2
        expected[b, t, h] = weights @ values / weights.sum()
    expected = layer.output(Tensor(expected.reshape(2, 4, 8))).numpy()
    np.testing.assert_allclose(layer(Tensor(x), FIRST, LAST).numpy(), expected, rtol=1e-10)


def test_gradients_of_the_layer_agree_with_central_differences():
    layer, x = small_layer()

    def run(x, key, value):
        layer.prefix_key, layer.prefix_value = key, value
        return layer(x, FIRST, LAST, x, rotate=lambda a: ops.rope(a, LAST, np.array([0.5])))

    mt.gradcheck(run, x, layer.prefix_key.data, layer.prefix_value.data)


@pytest.mark.parametrize("make, width", [(gpt, 16), (bert, 16), (llama, 8)])
def test_two_rows_a_layer_and_virtual_token_are_learned(make, width):
    """Li and Liang 2021: 2 L P C numbers; two key heads of four channels in the Llama."""
    model, P, L = make(), 3, 2
    assert tune.apply(model, tune.PrefixConfig(P)).trainable == 2 * L * P * width
    assert {p.shape for p in prefixes(model)} == {(P, width)} and len(prefixes(model)) == 2 * L
    assert [name for name, p in model.named_parameters() if p.requires_grad] == [
        f"blocks.{i}.attention.prefix_{which}" for i in range(L) for which in ("key", "value")]


def test_gpt2_mediums_share_is_the_papers():
    """Li and Liang 2021, abstract: 0.1 % of the parameters, here with a prefix of five."""
    with nn.shapes_only():
        report = tune.apply(models.GPT(models.GPTConfig(50_257, 1024, 24, 16, 1024)), tune.PrefixConfig(5))
    assert report.trainable == 245_760 and f"{report.trainable / report.total:.1%}" == "0.1%"


def test_the_other_parts_keep_their_names_and_the_base_can_be_had_again():
    model = gpt()
    names, before = [name for name, _ in model.named_modules()], model(labelled(model)).numpy()
    tune.apply(model, tune.PrefixConfig(2))
    assert [name for name, _ in model.named_modules()] == names and isinstance(model, models.GPT)
    assert model.config.block_size == 10 and model.position_embedding.weight.shape == (12, 16)
    plain = gpt()
    plain.load_state_dict({name: array for name, array in model.state_dict().items() if ".prefix_" not in name})
    np.testing.assert_array_equal(plain(labelled(plain)).numpy(), before)
    base = model.blocks[0].attention.base
    assert type(base) is nn.Attention and base.query is model.blocks[0].attention.query and base.heads == 2
    assert [name for name, _ in base.named_parameters()] == [name for name, _ in plain.blocks[0].attention.named_parameters()]


@pytest.mark.parametrize("make", [gpt, llama])
def test_the_keys_and_values_of_real_tokens_as_prefix_are_those_tokens_read(make):
    """What a cache holds after three tokens, learned or not, is what the tokens after them see."""
    model = in_double(make())
    ids, cache = np.array([[3, 1, 4, 1, 5, 9]]), nn.KVCache(12)
    expected = model.features(Batch.of_ids(ids)).numpy()[:, 3:]
    with model.evaluating():
        model.features(Batch.of_ids(ids[:, :3]), cache)
    layers = [cache.room(block.attention, (1, 3, block.attention.kv_heads, block.attention.head_size), np.zeros(0))[1:]
              for block in model.blocks]
    tune.apply(model, tune.PrefixConfig(3))
    for block, (keys, values) in zip(model.blocks, layers, strict=True):
        block.attention.prefix_key.data = keys[0, :3].reshape(3, -1).copy()
        block.attention.prefix_value.data = values[0, :3].reshape(3, -1).copy()
    # float64: the same sums
    np.testing.assert_allclose(model.features(Batch.of_ids(ids[:, 3:])).numpy(), expected, rtol=1e-10)


@pytest.mark.parametrize("batch", [
    Batch.causal([[[3, 1, 4]], [[5, 9]]], side="left"), Batch.causal([[[3, 1], [4, 1, 5]]]),
    LanguageModelSet([[3, 1, 4], [1, 5, 9, 2, 6]], 8).batch(np.array([0]))])
def test_padding_on_the_left_and_several_documents_a_row_are_refused(batch):
    model = gpt()
    tune.apply(model, tune.PrefixConfig(3))
    with pytest.raises(ValueError, match="PrefixConfig: a prefix stands at the beginning of a row.*Give one document a "
                                         "row, padded on the right"):
        model(batch)


def test_generation_from_prompts_of_several_lengths_says_what_to_do():
    model = gpt()
    tune.apply(model, tune.PrefixConfig(3))
    with pytest.raises(ValueError, match="generate from prompts of one length, or one by one"):
        model.generate_ids([[3, 1, 4], [1]], 2)


@pytest.mark.parametrize("make", [gpt, bert, llama])
def test_a_text_that_the_prefix_leaves_no_room_for_raises_with_the_room(make):
    model = make()
    tune.apply(model, tune.PrefixConfig(5))
    assert model(np.ones((1, 7), int)).shape[1] == 7
    with pytest.raises(ValueError, match=r"reads at most 12 tokens a row, and its 5 virtual ones leave 7, got 8\. Cut the "
                                         r"texts to model\.config\.block_size = 7"):
        model(np.ones((1, 8), int))


@pytest.mark.parametrize("make, length, error", [
    (gpt, 0, "PrefixConfig: length must be an int of at least 1, got 0"),
    (gpt, 12, "PrefixConfig: length must be less than block_size = 12, which texts share"),
    (awd_lstm, 3, "AWDLSTM is none that reads texts"),
    (lambda: models.ViT(models.ViTConfig(8, 4, 1, 2, 16)), 3, "ViT is none that reads texts")])
def test_what_cannot_work_changes_nothing(make, length, error):
    model = models.Classifier(make(), ["no", "yes"])
    before, counter = list(model.named_modules()), dict(random.counters)
    with pytest.raises(ValueError, match=error):
        tune.apply(model, tune.PrefixConfig(length))
    assert list(model.named_modules()) == before and dict(random.counters) == counter
    assert all(p.requires_grad for p in model.parameters())


# ---- Against PEFT --------------------------------------------------------------------------------------------------

@pytest.mark.filterwarnings("ignore::FutureWarning")        # PEFT's use of what Hugging Face has renamed
@pytest.mark.parametrize("kind", TASKS)
def test_forward_gradients_and_first_update_are_pefts(kind, tmp_path):
    # float64, other orders of the same sums; Hugging Face's Llama computes norms and rotations in float32
    tolerance = dict(rtol=1e-4, atol=1e-4) if kind == "Llama" else dict(rtol=1e-9, atol=1e-9)
    torch, peft, theirs, ours, batch = oracle(kind, tmp_path)
    P = 3
    theirs = peft.get_peft_model(theirs, peft.PrefixTuningConfig(task_type=TASKS[kind], num_virtual_tokens=P)).eval().double()
    tune.apply(ours, tune.PrefixConfig(P))
    randomise(prefixes(ours), size=1.0)
    there = theirs.prompt_encoder["default"].embedding.weight               # (P, 2 L kv_heads D): key, value, layer by layer
    there.data = torch.from_numpy(np.concatenate([p.data for p in prefixes(ours)], 1))
    expected, y = result_of(torch, theirs, batch), ours(batch)
    np.testing.assert_allclose(y.numpy()[batch.valid], expected.detach().numpy(), **tolerance)
    grad = np.random.default_rng(0).standard_normal(expected.shape)
    expected.backward(torch.from_numpy(grad))
    whole = np.zeros(y.shape)
    whole[batch.valid] = grad
    y.backward(whole)
    np.testing.assert_allclose(np.concatenate([p.grad for p in prefixes(ours)], 1), there.grad.numpy(), **tolerance)
    torch.optim.AdamW([there], lr=0.01, weight_decay=0.0).step()
    AdamW(ours, lr=0.01, weight_decay=0.0).step()
    np.testing.assert_allclose(np.concatenate([p.data for p in prefixes(ours)], 1), there.detach().numpy(), **tolerance)

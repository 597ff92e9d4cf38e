"""LoRA: what it trains, what it leaves alone, and that merging and taking apart again lose nothing."""

import tracemalloc

import numpy as np
import pytest
from small_models import randomise

import minitune as mt
from minitune import models, nn, tune
from minitune.backend import random
from minitune.data import Batch
from minitune.optim import AdamW, Group
from minitune.tensor import Tensor

BATCH = Batch.causal([[[3, 1, 4, 1, 5, 9]], [[2, 6, 5]]])
LABELLED = Batch.causal([[[3, 1, 4, 1, 5, 9]], [[2, 6, 5]]], labels=[1, 0])


def gpt(n_embd=16, n_layer=2, n_head=2, dropout=0.0):
    return models.GPT(models.GPTConfig(20, 8, n_layer, n_head, n_embd, dropout))


def classifier(**sizes):
    return models.Classifier(gpt(**sizes), ["no", "yes"])


def step(model, optimizer, batch):
    (loss, count, _), = model.loss(batch).values()
    (loss * (1 / count)).backward()
    optimizer.step()
    optimizer.zero_grad()


def randomise_updates(model, seed=0):
    """B starts at 0, where mistakes in the update would not show."""
    draw = np.random.default_rng(seed)
    layers = [part for _, part in model.named_modules() if isinstance(part, tune.LoRALinear)]
    for layer in layers:
        layer.B.data = (0.1 * draw.standard_normal(layer.B.shape)).astype(layer.B.dtype)
    return layers


# ---- What trains ---------------------------------------------------------------------------------------------------

def test_lora_on_every_linear_layer_trains_less_than_a_tenth_of_the_blocks():
    model = gpt(n_embd=128, n_layer=4, n_head=4)
    in_blocks = sum(p.size for name, p in model.named_parameters() if name.startswith("blocks."))
    report = tune.apply(model, tune.LoRAConfig(r=8, lora_alpha=16, target_modules="all-linear"))
    C = 128                                     # four C -> C layers and two between C and 4 C, each r (in + out)
    assert report.trainable == model.num_parameters(trainable=True) == 4 * 8 * (4 * 2 * C + 2 * 5 * C) == 73_728
    assert report.trainable < in_blocks / 10
    assert {name.rpartition(".")[2] for name, p in model.named_parameters() if p.requires_grad} == {"A", "B"}


@pytest.mark.parametrize("name, layers, channels, heads, trainable",
                         [("GPT-2 medium", 24, 1024, 16, 393_216), ("GPT-2 large", 36, 1280, 20, 737_280)])
def test_gpt2s_published_counts_are_found_without_its_memory(name, layers, channels, heads, trainable):
    """Hu et al. 2021, table 3: r = 4 on query and value. The larger model would fill 3 GB."""
    tracemalloc.start()
    try:
        with nn.shapes_only():
            model = models.GPT(models.GPTConfig(50_257, 1024, layers, heads, channels))
            report = tune.apply(model, tune.LoRAConfig(r=4, lora_alpha=32, target_modules=["query", "value"]))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert report.trainable == trainable
    assert report.total == trainable + (50_257 + 1024) * channels + layers * (12 * channels**2 + 13 * channels) + 2 * channels
    assert peak < 5e6, f"{name} took {peak:,} bytes"


def test_a_new_head_trains_in_full_and_the_backbone_does_not():
    model = classifier()
    tune.freeze(model)
    tune.apply(model, tune.LoRAConfig(r=2, target_modules="query"))
    assert {name for name, p in model.named_parameters() if p.requires_grad} == {
        "head.weight", *(f"backbone.blocks.{i}.attention.query.{part}" for i in range(2) for part in "AB")}


def test_before_training_the_adapted_model_computes_what_the_base_does():
    model = gpt()
    before = model(BATCH).numpy()
    tune.apply(model, tune.LoRAConfig(r=4))
    np.testing.assert_array_equal(model(BATCH).numpy(), before)             # B is 0: not a bit differs


def test_base_weights_are_the_same_bytes_after_steps_with_weight_decay():
    model = classifier()
    base = {id(p): (name, p, p.data.tobytes()) for name, p in model.backbone.named_parameters()}
    tune.apply(model, tune.LoRAConfig(r=2, lora_alpha=8))
    trained = {name: p.data.copy() for name, p in model.named_parameters() if p.requires_grad}
    optimizer = AdamW(model, lr=1e-2, weight_decay=0.5)
    for _ in range(3):
        step(model, optimizer, LABELLED)
    for name, parameter, bytes_before in base.values():
        assert parameter.data.tobytes() == bytes_before, name
        assert parameter.grad is None and id(parameter) not in optimizer.slots
    now = dict(model.named_parameters())
    assert all(not np.array_equal(now[name].data, before) for name, before in trained.items())


def test_every_trainable_parameter_gets_a_gradient_and_no_other():
    model = classifier()
    tune.apply(model, tune.LoRAConfig(r=2))
    randomise_updates(model)
    (loss, _, _), = model.loss(LABELLED).values()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert (parameter.grad is not None) == parameter.requires_grad, name


# ---- One layer -----------------------------------------------------------------------------------------------------

def small_layer(dropout=0.0, bias=True):
    base = nn.Linear(5, 4, bias=bias)
    layer = tune.LoRALinear(base, r=3, lora_alpha=6, lora_dropout=dropout)
    draw = np.random.default_rng(1)
    for parameter in layer.parameters():
        parameter.data = draw.standard_normal(parameter.shape)
    return layer, draw.standard_normal((2, 3, 5)), draw.standard_normal((2, 3, 4))


@pytest.mark.parametrize("bias", [True, False])
def test_the_layer_is_w_plus_scale_b_a(bias):
    layer, x, residual = small_layer(bias=bias)
    W, A, B = layer.base.weight.data, layer.A.data, layer.B.data
    expected = x @ (W + 2 * B @ A).T + (layer.base.bias.data if bias else 0)
    assert layer.scale == 2
    np.testing.assert_allclose(layer(Tensor(x)).numpy(), expected, rtol=1e-12)
    np.testing.assert_allclose(layer(Tensor(x), Tensor(residual)).numpy(), expected + residual, rtol=1e-12)
    np.testing.assert_allclose(layer.effective_weight().numpy(), W + 2 * B @ A, rtol=1e-12)


def test_gradients_of_the_layer_agree_with_central_differences():
    layer, x, residual = small_layer()

    def run(x, weight, bias, A, B, residual):
        layer.base.weight, layer.base.bias, layer.A, layer.B = weight, bias, A, B
        return layer(x, residual)

    mt.gradcheck(run, x, layer.base.weight.data, layer.base.bias.data, layer.A.data, layer.B.data, residual)
    mt.gradcheck(lambda A, B: (setattr(layer, "A", A), setattr(layer, "B", B), layer.effective_weight())[-1],
                 layer.A.data, layer.B.data)


def test_dropout_falls_on_the_updates_input_alone():
    layer, x, residual = small_layer(dropout=0.5)
    plain, _, _ = small_layer()
    mt.seed(3)
    y = layer(Tensor(x), Tensor(residual)).numpy()
    mt.seed(3)
    dropped = nn.Dropout(0.5)(Tensor(x)).numpy()
    assert (dropped == 0).any()
    W, b, A, B = layer.base.weight.data, layer.base.bias.data, layer.A.data, layer.B.data
    np.testing.assert_allclose(y, x @ W.T + b + residual + 2 * dropped @ A.T @ B.T, rtol=1e-12)
    layer.eval()
    np.testing.assert_array_equal(layer(Tensor(x)).numpy(), plain(Tensor(x)).numpy())


def test_the_dropout_path_has_right_gradients():
    layer, x, _ = small_layer(dropout=0.5)

    def run(x, A, B):
        mt.seed(3)
        layer.A, layer.B = A, B
        return layer(x)

    mt.gradcheck(run, x, layer.A.data, layer.B.data)


def test_a_starts_uniform_within_one_over_root_in_and_b_at_zero():
    layer = tune.LoRALinear(nn.Linear(400, 300), r=8, lora_alpha=16)
    assert (layer.A.shape, layer.B.shape, layer.scale) == ((8, 400), (300, 8), 2)
    assert not layer.B.data.any()
    assert 0.049 < np.abs(layer.A.data).max() <= 0.05
    assert abs(layer.A.data.std() - 0.05 / 3**0.5) < 1e-3                   # a uniform number's deviation: bound / sqrt(3)


@pytest.mark.parametrize("r", [0, -1, 17, 1.5])
def test_a_rank_that_does_not_fit_changes_nothing(r):
    model = gpt()
    before, counter = list(model.named_modules()), dict(random.counters)
    with pytest.raises(ValueError, match=r"r must be from 1 to 16 for weight \(16, 16\), got " + str(r)):
        tune.apply(model, tune.LoRAConfig(r=r))
    assert list(model.named_modules()) == before and dict(random.counters) == counter
    assert all(p.requires_grad for p in model.parameters())


def test_adapting_twice_raises_with_the_repair():
    model = gpt()
    tune.apply(model, tune.LoRAConfig(r=2, target_modules="query"))
    with pytest.raises(ValueError, match=r"has adapted layers already.*tune\.merge"):
        tune.apply(model, tune.LoRAConfig(r=2, target_modules="value"))


def test_adam_cannot_tell_scaled_starts_from_scaled_rates():
    """Schulman 2025, LoRA Without Regret: with alpha / (p q), p A and rates p for A and q for B training is the same.

    p and q are powers of two, so every product is exact and the weights agree to the last bit; eps is small enough to
    vanish beside any second moment.
    """
    def train(p, q, steps=4):
        mt.seed(1)
        model = classifier()
        tune.apply(model, tune.LoRAConfig(r=2, lora_alpha=4 / (p * q), target_modules=["query", "value", "up"]))
        layers = [part for _, part in model.named_modules() if isinstance(part, tune.LoRALinear)]
        for layer in layers:
            layer.A.data *= np.float32(p)
        optimizer = AdamW([Group([layer.A for layer in layers], rate=p), Group([layer.B for layer in layers], rate=q)],
                          lr=2.0**-6, eps=1e-30)
        for _ in range(steps):
            step(model, optimizer, LABELLED)
        return [layer.effective_weight().numpy() for layer in layers]

    plain, scaled = train(1, 1), train(4, 0.5)
    for a, b in zip(plain, scaled, strict=True):
        np.testing.assert_array_equal(a, b)
    start = train(1, 1, steps=0)
    assert all(np.abs(a - b).max() > 0.01 for a, b in zip(plain, start, strict=True))


# ---- Merging -------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("make", [gpt, classifier])
def test_merged_and_unmerged_logits_agree_and_the_certificate_says_how_well(make):
    model = make()
    tune.apply(model, tune.LoRAConfig(r=4, lora_alpha=8))
    randomise_updates(model)
    before = model(BATCH).numpy()
    certificate = tune.merge(model, probe=BATCH)
    after = model(BATCH).numpy()
    assert not any(isinstance(part, tune.LoRALinear) for _, part in model.named_modules())
    gap = np.abs(after - before).max()
    assert certificate.gap == gap < 1e-5        # some float32 roundings of logits about 1
    assert certificate.largest == np.abs(before).max()
    largest = f"{certificate.largest:.3g}"
    assert str(certificate) == f"merged 12 adapted layers; logits moved by at most {gap:.2g} (largest {largest})"


def test_merging_sums_in_float64_and_rounds_once():
    model = gpt()
    tune.apply(model, tune.LoRAConfig(r=4))
    layers = {name: part for name, part in model.named_modules() if isinstance(part, tune.LoRALinear)}
    randomise_updates(model)
    tune.merge(model)
    merged = dict(model.named_modules())
    for name, layer in layers.items():
        W, A, B = (p.data.astype(np.float64) for p in (layer.base.weight, layer.A, layer.B))
        np.testing.assert_array_equal(merged[name].weight.data, (W + layer.scale * (B @ A)).astype(np.float32))
        assert merged[name].weight.dtype == np.float32 and merged[name].bias is layer.base.bias


def test_unmerging_restores_the_model_bit_for_bit():
    model = classifier()
    tune.apply(model, tune.LoRAConfig(r=4))
    randomise_updates(model)
    state = {name: array.copy() for name, array in model.state_dict().items()}
    trainable = [name for name, p in model.named_parameters() if p.requires_grad]
    logits = model(BATCH).numpy()
    tune.unmerge(model, tune.merge(model, BATCH))
    now = model.state_dict()
    assert list(now) == list(state) and all(np.array_equal(now[name], state[name]) for name in state)
    assert [name for name, p in model.named_parameters() if p.requires_grad] == trainable
    np.testing.assert_array_equal(model(BATCH).numpy(), logits)


def test_merging_without_a_probe_says_so():
    model = gpt()
    tune.apply(model, tune.LoRAConfig(r=2, target_modules="up"))
    certificate = tune.merge(model)
    assert (certificate.gap, certificate.largest) == (None, None)
    assert str(certificate) == "merged 2 adapted layers; not probed"


def test_eval_merges_nothing_and_the_probe_leaves_mode_and_randomness_alone():
    model = gpt(dropout=0.3)
    tune.apply(model, tune.LoRAConfig(r=2, lora_dropout=0.3))
    layers = randomise_updates(model)
    model.eval()
    assert [part for _, part in model.named_modules() if isinstance(part, tune.LoRALinear)] == layers
    model.train()
    counters = dict(random.counters)
    assert tune.merge(model, BATCH).gap < 1e-5  # with dropout still on it would be about 1
    assert model.training and dict(random.counters) == counters


def test_nothing_to_merge_raises():
    with pytest.raises(ValueError, match="merge: the model has no adapted layers"):
        tune.merge(gpt())


def test_a_weight_tied_to_another_layer_is_refused_and_nothing_is_merged():
    model = gpt()
    model.blocks[1].attention.query.weight = model.blocks[0].attention.query.weight
    tune.apply(model, tune.LoRAConfig(r=2, target_modules="blocks.0.attention.query"))
    with pytest.raises(ValueError, match=r"blocks\.0\.attention\.query is tied to blocks\.1\.attention\.query"):
        tune.merge(model, BATCH)
    assert isinstance(model.blocks[0].attention.query, tune.LoRALinear)


def test_two_adapted_layers_that_share_a_weight_are_refused():
    model = gpt()
    model.blocks[1].mlp.up.weight = model.blocks[0].mlp.up.weight
    tune.apply(model, tune.LoRAConfig(r=2, target_modules="up"))
    with pytest.raises(ValueError, match=r"is tied to blocks\.[01]\.mlp\.up\.base"):
        tune.merge(model)


def test_logits_that_are_not_finite_put_the_adapters_back():
    model = gpt()
    tune.apply(model, tune.LoRAConfig(r=2, target_modules="up"))
    model.blocks[0].mlp.up.B.data[0, 0] = np.nan
    with pytest.raises(RuntimeError, match="not finite; nothing was merged"):
        tune.merge(model, BATCH)
    assert isinstance(model.blocks[0].mlp.up, tune.LoRALinear)


def test_a_certificate_of_another_model_is_refused():
    large, small = gpt(n_layer=3), gpt(n_layer=2)
    tune.apply(large, tune.LoRAConfig(r=2, target_modules="up"))
    certificate = tune.merge(large)
    with pytest.raises(ValueError, match=r"no merged layer is at blocks\.0\.mlp\.up"):
        tune.unmerge(small, certificate)
    assert not any(isinstance(part, tune.LoRALinear) for _, part in small.named_modules())


def test_a_model_taken_apart_again_is_in_the_mode_it_is_in():
    """Merged while training, put in evaluation, unmerged: dropout of the adapters that came back is off."""
    model = gpt()
    tune.apply(model, tune.LoRAConfig(r=2, lora_dropout=0.5))
    certificate = tune.merge(model)
    model.eval()
    tune.unmerge(model, certificate)
    assert not any(part.training for _, part in model.named_modules())


def test_saving_with_adapters_inside_raises_with_the_repair_and_writes_nothing(tmp_path):
    model = gpt()
    tune.apply(model, tune.LoRAConfig(r=2))
    with pytest.raises(ValueError, match=r"Are adapters still in the model\? Merge them first: tune\.merge\(model\)"):
        model.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()
    tune.merge(model)
    model.save_pretrained(tmp_path / "model")
    loaded = models.from_pretrained(tmp_path / "model")(BATCH).numpy()
    np.testing.assert_allclose(loaded, model(BATCH).numpy(), rtol=1e-5, atol=1e-6)  # BLAS may sum a transposed copy otherwise


def test_a_certificate_is_of_one_merge_of_one_model():
    """Neither a model of the same shape takes it, nor this one once it was merged anew."""
    model, other = gpt(), gpt()
    for each in model, other:
        tune.apply(each, tune.LoRAConfig(r=2, target_modules="up"))
    old, others = tune.merge(model), tune.merge(other)
    kept = other.blocks[0].mlp.up
    with pytest.raises(ValueError, match=r"no merged layer is at blocks\.0\.mlp\.up"):
        tune.unmerge(other, old)
    assert other.blocks[0].mlp.up is kept
    tune.unmerge(model, old)
    tune.merge(model)
    with pytest.raises(ValueError, match="of another model, or of an earlier merge"):
        tune.unmerge(model, old)
    tune.unmerge(other, others)


def test_a_model_that_got_another_dtype_since_its_merge_is_unmerged_in_it():
    model = gpt().eval()
    tune.apply(model, tune.LoRAConfig(r=2))
    randomise(model.parameters())
    logits, certificate = model(BATCH).numpy(), tune.merge(model)
    model.to(dtype="float64")
    tune.unmerge(model, certificate)
    assert {p.dtype for p in model.parameters()} == {np.dtype(np.float64)}
    np.testing.assert_allclose(model(BATCH).numpy(), logits, 1e-5, 1e-5)    # float32's rounding of the first logits


@pytest.mark.parametrize("method", [tune.LoRAConfig(r=2), tune.IA3Config(), tune.AdapterConfig(4), tune.PrefixConfig(2),
                                    tune.PromptConfig(2), tune.QLoRAConfig(r=2)])
@pytest.mark.parametrize("training", [True, False])
def test_new_layers_are_in_the_mode_of_those_whose_place_they_take(method, training):
    model = gpt().train(training)
    tune.apply(model, method)
    assert {part.training for part in model.modules()} == {training}


@pytest.mark.parametrize("trains", [True, False])
def test_a_plain_layer_trains_as_the_base_did(trains):
    layer = tune.LoRALinear(nn.Linear(3, 4), 2, 2.0)
    layer.base.weight.requires_grad = trains
    assert layer.merged().weight.requires_grad is trains

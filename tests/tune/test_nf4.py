"""NF4: the levels are the paper's, each number gets the nearest, the bytes are counted, and LoRA learns on such a base."""

from itertools import pairwise

import numpy as np
import pytest

import minitune as mt
from minitune import models, nn, tune
from minitune.data import Batch
from minitune.optim import AdamW
from minitune.tensor import Tensor
from minitune.tune.nf4 import BLOCK, dequantize, float8_levels, nf4_levels, quantize

BATCH = Batch.causal([[[3, 1, 4, 1, 5, 9]], [[2, 6, 5]]])
# Dettmers et al. 2023, QLoRA, appendix E
PUBLISHED = [-1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
             -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
             0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0]


def gpt(n_embd=16):
    return models.GPT(models.GPTConfig(20, 8, 2, 2, n_embd))


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


# ---- Levels --------------------------------------------------------------------------------------------------------

def test_the_levels_are_those_of_the_papers_appendix():
    """The paper prints float32 numbers made with another quantile function and another order of roundings: some 6e-8."""
    np.testing.assert_allclose(nf4_levels(), PUBLISHED, atol=3e-7)
    assert nf4_levels()[7] == 0 and (nf4_levels()[0], nf4_levels()[15]) == (-1, 1)


def test_levels_hold_about_equal_shares_of_normal_numbers_in_the_middle():
    """Quantiles: each level but the outer ones is nearest to as many numbers as its neighbours on its side."""
    middles = (nf4_levels()[1:] + nf4_levels()[:-1]) / 2
    numbers = np.random.default_rng(0).standard_normal(400_000) / 1.848    # over the quantile that the levels are divided by
    shares = np.bincount(np.searchsorted(middles, numbers), minlength=16) / len(numbers)
    assert np.abs(shares[1:7] - shares[1:7].mean()).max() < 0.006 and np.abs(shares[8:15] - shares[8:15].mean()).max() < 0.006


def test_float8_has_its_known_numbers():
    numbers = set((float8_levels() * 480).tolist())
    assert len(numbers) == 255 and {0.0, 448.0, -448.0, 2.0**-9, 2.0**-6, 1.0, 1.125, 240.0} <= numbers
    assert (np.diff(float8_levels()) > 0).all()


# ---- Quantisation --------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("count", [1, 63, 64, 65, 200])
@pytest.mark.parametrize("levels", [nf4_levels(), float8_levels()], ids=["nf4", "float8"])
def test_each_number_gets_the_nearest_level_of_its_block(count, levels):
    a = normal(count)
    codes, scales = quantize(a, levels, 64)
    assert codes.dtype == np.uint8 and codes.shape == (count,) and scales.shape == (-(-count // 64),)
    for block, (start, stop) in enumerate(pairwise([*range(0, count, 64), count])):
        assert scales[block] == np.abs(a[start:stop]).max()
        errors = np.abs(a[start:stop, None] / scales[block] - levels)
        # a number halfway between two levels may go to either: 1e-6 is some roundings of numbers up to 1
        np.testing.assert_allclose(errors[np.arange(stop - start), codes[start:stop]], errors.min(1), atol=1e-6)
    back = dequantize(codes, scales, levels, 64)
    assert np.abs(back - a).max() <= np.diff(levels).max() / 2 * scales.max() * 1.001
    largest = np.abs(a).argmax()
    assert back[largest] == a[largest]          # -1 and 1 are levels


def test_zeros_stay_zeros():
    codes, scales = quantize(np.zeros(70, np.float32), nf4_levels(), 64)
    assert not scales.any() and not dequantize(codes, scales, nf4_levels(), 64).any()


def test_nf4_is_nearer_to_normal_numbers_than_equal_steps():
    """Why the levels are quantiles; equal steps are the 16 whole numbers from -8 to 7. Measured: 12 % less squared error."""
    a = normal(64 * 200)

    def error(levels):
        return np.square(dequantize(*quantize(a, levels, 64), levels, 64) - a).mean()

    assert error(nf4_levels()) < 0.9 * error((np.arange(-8, 8) / 8).astype(np.float32))


# ---- The layer -----------------------------------------------------------------------------------------------------

def linear(outputs=7, inputs=33, bias=True):
    base = nn.Linear(inputs, outputs, bias)
    base.weight.data = normal(outputs, inputs)
    return base


@pytest.mark.parametrize("outputs, inputs", [(1, 1), (7, 33), (64, 64), (3, 21)])
@pytest.mark.parametrize("use_double_quant", [False, True])
def test_the_weight_is_the_base_to_four_bits(outputs, inputs, use_double_quant):
    base = linear(outputs, inputs)
    W, layer = base.weight.data, tune.NF4Linear(base, use_double_quant)
    codes, scales = quantize(W.reshape(-1), nf4_levels(), BLOCK)
    plain = dequantize(codes, scales, nf4_levels(), BLOCK).reshape(W.shape)
    got = layer.weight.numpy()
    assert got.dtype == np.float32 and got.shape == W.shape
    if not use_double_quant:
        np.testing.assert_array_equal(got, plain)
    # a float of 3 bits of fraction errs by 1/16 of a scale's distance from the mean of all
    spread = np.repeat(np.abs(scales - scales.mean()) / 16 + 1e-6, BLOCK)[:W.size].reshape(W.shape)
    assert (np.abs(got - plain) <= spread).all()
    x, residual = normal(2, 3, inputs), normal(2, 3, outputs)
    np.testing.assert_allclose(layer(Tensor(x), Tensor(residual)).numpy(), x @ got.T + base.bias.data + residual, rtol=1e-4,
                               atol=1e-5)


@pytest.mark.parametrize("outputs, inputs, double, single", [
    (64, 256, 64 * 128 + 256 + 4 + 4, 64 * 128 + 4 * 256),              # a scale of scales, and the mean
    (4096, 4096, 2**23 + 2**18 + 4 * 2**10 + 4, 2**23 + 4 * 2**18), (7, 33, 116 + 4 + 4 + 4, 116 + 4 * 4)])
def test_bytes_are_counted(outputs, inputs, double, single):
    with nn.shapes_only():
        base = nn.Linear(inputs, outputs)
    assert tune.NF4Linear(base, use_double_quant=True).nbytes == double
    assert tune.NF4Linear(base, use_double_quant=False).nbytes == single


def test_a_weight_takes_the_papers_bits():
    """Dettmers et al. 2023, section 3, double quantization: 0.5 bits for scales become 8 / 64 + 32 / (64 * 256) = 0.127."""
    with nn.shapes_only():
        base = nn.Linear(2048, 2048)
    bits = [8 * tune.NF4Linear(base, double).nbytes / 2048**2 for double in (False, True)]
    assert bits[0] == 4.5 and abs(bits[1] - (4 + 8 / 64 + 32 / (64 * 256))) < 1e-5


@pytest.mark.parametrize("bias", [True, False])
def test_gradients_reach_the_input_bias_and_residual(bias):
    base = linear(4, 5, bias)
    layer = tune.NF4Linear(base)

    def run(x, residual, *rest):
        if bias:
            (layer.bias,) = rest
        return layer(x, residual)

    draw = np.random.default_rng(1)
    mt.gradcheck(run, draw.standard_normal((2, 3, 5)), draw.standard_normal((2, 3, 4)), *([base.bias.data] if bias else []))


def test_the_graph_keeps_no_weight():
    layer = tune.NF4Linear(linear(bias=False))
    y = layer(Tensor(normal(2, 33), requires_grad=True))
    assert not any(isinstance(kept, (np.ndarray, Tensor)) for kept in y.node.saved)
    assert not list(layer.parameters())


# ---- QLoRA ---------------------------------------------------------------------------------------------------------

def test_qlora_is_lora_on_the_weight_in_four_bits():
    layer = tune.QLoRALinear(linear(), r=3, lora_alpha=6)
    layer.B.data = normal(7, 3, seed=2)
    W, x = layer.base.weight.numpy(), normal(2, 33, seed=3)
    summed = W.astype(np.float64) + 2 * layer.B.data.astype(np.float64) @ layer.A.data.astype(np.float64)
    np.testing.assert_allclose(layer(Tensor(x)).numpy(), x @ summed.T + layer.base.bias.data, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(layer.effective_weight().numpy(), summed, rtol=1e-5, atol=1e-6)
    merged = layer.merged()
    assert type(merged) is nn.Linear and merged.bias is layer.base.bias and not merged.weight.requires_grad
    np.testing.assert_array_equal(merged.weight.data, summed.astype(np.float32))


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_gradients_of_qlora_agree_with_central_differences(dropout):
    layer = tune.QLoRALinear(linear(4, 5), r=3, lora_alpha=6, lora_dropout=dropout)
    layer.base.bias.data = layer.base.bias.data.astype(np.float64)

    def run(x, residual, A, B):
        mt.seed(3)
        layer.A, layer.B = A, B
        return layer(x, residual)

    draw = np.random.default_rng(1)
    mt.gradcheck(run, *(draw.standard_normal(shape) for shape in ((2, 3, 5), (2, 3, 4), (3, 5), (4, 3))))


@pytest.mark.parametrize("use_double_quant", [False, True])
def test_a_base_in_four_bits_is_small_frozen_and_tuned_as_well(use_double_quant):
    mt.seed(0)
    base = gpt(64)
    in_layers = sum(p.data.nbytes for name, p in base.named_parameters() if name.endswith(("query.weight", "up.weight")))
    before = {name: p.data.tobytes() for name, p in base.named_parameters()}
    model = models.Classifier(base, ["a", "b"])
    batch = Batch.causal([[[3, 1, 4, 1, 5]], [[2, 6, 5]]], labels=[1, 0])
    tune.apply(model, tune.QLoRAConfig(r=2, target_modules=["query", "up"], use_double_quant=use_double_quant))
    small = [part for part in model.modules() if isinstance(part, tune.NF4Linear)]
    assert len(small) == 4 and sum(layer.nbytes for layer in small) < in_layers / 7
    codes = [[a.copy() for a in layer.codes] for layer in small]
    optimizer, losses = AdamW(model, lr=0.02), []
    for _ in range(6):
        (loss, count, _), = model.loss(batch).values()
        (loss * (1 / count)).backward()
        tune.audit(model, optimizer)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    assert all(np.array_equal(a, b) for kept, layer in zip(codes, small, strict=True)
               for a, b in zip(kept, layer.codes, strict=True))
    assert {name: p.data.tobytes() for name, p in base.named_parameters()} == before   # the model it was made of keeps its own


def test_two_models_quantised_from_one_base_are_the_same_bits():
    base = gpt()
    logits = []
    for _ in range(2):
        mt.seed(1)
        model = models.Classifier(base, ["a", "b"])
        tune.apply(model, tune.QLoRAConfig(r=2))
        logits.append(model(BATCH).numpy())
    np.testing.assert_array_equal(*logits)


def test_quantising_costs_little_of_the_logits():
    """Four bits err by about a tenth of a weight's deviation; a model of small weights moves by less than its logits' size."""
    model = gpt(64)
    before = model(BATCH).numpy()
    tune.apply(model, tune.QLoRAConfig(r=2))
    moved = np.abs(model(BATCH).numpy() - before)
    assert 0 < moved.mean() < 0.1 * np.abs(before).mean()

"""The compiled step of generation computes what the layers compute, and leaves to them what it cannot."""

import numpy as np
import pytest

import minitune as mt
from minitune import backend, nn, ops
from minitune.nn import KVCache, TransformerBlock
from minitune.tune.lora import LoRALinear

pytestmark = pytest.mark.skipif(backend.twins_in("cpu", "transformer") is None,
                                reason="the compiler of CPU twins is not installed")
# float32: numbers of size 1 to 4, behind which stand sums of up to 4 C products in another order, each rounded by 6e-8
TOLERANCE = dict(rtol=0, atol=1e-5)


def block_of(channels, heads, seed=0):
    mt.seed(seed)
    block, random = TransformerBlock(channels, heads, 2), np.random.default_rng(seed)
    for parameter in block.parameters():
        parameter.data = random.normal(0, parameter.shape[-1] ** -0.5, parameter.shape).astype(np.float32)
    return block


def steps(block, channels, count, first=0, dtype=np.float32):
    """The block's answers to `count` tokens, read one by one with a cache, each seeing `first` and what follows."""
    cache, x = KVCache(count), np.random.default_rng(1).standard_normal((count, 1, 1, channels)).astype(dtype)
    with mt.no_grad():
        return [block(mt.Tensor(token), np.array([[min(first, at)]]), np.array([[at]]), cache).numpy()
                for at, token in enumerate(x)]


@pytest.fixture
def calls(monkeypatch):
    """How often the compiled step ran."""
    twin, seen = backend.twins_in("cpu", "transformer"), []
    original = twin.next_token
    monkeypatch.setattr(twin, "next_token", lambda *given: seen.append(1) or original(*given))
    return seen


@pytest.mark.parametrize("first", [0, 3])
@pytest.mark.parametrize("channels, heads", [(1, 1), (2, 2), (6, 2), (31, 1), (33, 3), (64, 4), (255, 5), (256, 8), (1024, 4)])
def test_each_token_gets_what_the_layers_give(channels, heads, first, calls):
    block = block_of(channels, heads)
    fast = steps(block, channels, 9, first)
    assert len(calls) == 9
    with mt.kernels(False):
        slow = steps(block, channels, 9, first)
    assert len(calls) == 9
    for a, b in zip(fast, slow, strict=True):
        assert a.shape == b.shape and a.dtype == b.dtype
        np.testing.assert_allclose(a, b, **TOLERANCE)
    np.testing.assert_array_equal(fast, steps(block, channels, 9, first))       # two runs, the same bits


def test_a_cache_that_the_layers_began_is_gone_on_with():
    block = block_of(8, 2)
    x = np.random.default_rng(2).standard_normal((1, 6, 8)).astype(np.float32)
    first, last = np.zeros((1, 6), int), np.arange(6)[None]
    with mt.no_grad():
        whole, cache = block(mt.Tensor(x), first, last).numpy(), KVCache(6)
        parts = [block(mt.Tensor(x[:, at]), first[:, at], last[:, at], cache).numpy()
                 for at in (slice(0, 4), slice(4, 5), slice(5, 6))]
    np.testing.assert_allclose(np.concatenate(parts, 1), whole, **TOLERANCE)


def test_nan_is_shown_and_a_full_cache_is_an_error():
    block, cache = block_of(8, 2), KVCache(1)
    zero = np.zeros((1, 1), int)
    with mt.no_grad():
        assert np.isnan(block(mt.Tensor(np.full((1, 1, 8), np.nan, np.float32)), zero, zero, cache).numpy()).all()
        with pytest.raises(ValueError, match="its rows hold 1 tokens, got 1 and 1 more"):
            block(mt.Tensor(np.zeros((1, 1, 8), np.float32)), zero, zero + 1, cache)


@pytest.mark.parametrize("kind", ["LoRA layer", "no bias", "float64", "transposed weight", "another norm", "another perceptron",
                                  "a forward of its own", "looked at"])
def test_what_it_cannot_take_is_left_to_the_layers(kind, calls):
    block, dtype = block_of(8, 2), np.float64 if kind == "float64" else np.float32
    if kind == "LoRA layer":
        block.mlp.up = LoRALinear(block.mlp.up, 2, 4)
        block.mlp.up.B.data += 1
    if kind == "no bias":
        block.mlp.down.bias = None
    if kind == "float64":
        for parameter in block.parameters():
            parameter.data = parameter.data.astype(dtype)
    if kind == "transposed weight":
        block.attention.key.weight.data = np.asfortranarray(block.attention.key.weight.data)
    if kind == "another perceptron":
        class Relu(nn.MLP):
            def forward(self, x, residual=None):
                return self.down(ops.relu(self.up(x)), residual)

        relu = Relu(8)
        relu.load_state_dict(block.mlp.state_dict())
        block.mlp = relu
    if kind == "a forward of its own":
        block.attention.output.forward = lambda x, residual=None: ops.linear(x, block.attention.output.weight, None, residual)
    if kind == "another norm":
        class Doubled(nn.LayerNorm):
            def forward(self, x):
                return super().forward(x) * 2

        doubled = Doubled(8)
        doubled.load_state_dict(block.mlp_norm.state_dict())
        block.mlp_norm = doubled
    if kind == "looked at":
        with mt.detect_anomaly():
            got = steps(block, 8, 3)
    else:
        got = steps(block, 8, 3, dtype=dtype)
    assert not calls
    with mt.kernels(False):
        for a, b in zip(got, steps(block, 8, 3, dtype=dtype), strict=True):
            np.testing.assert_allclose(a, b, **TOLERANCE)


def test_a_token_that_sees_what_is_not_there_is_an_error():
    block, cache, zero = block_of(8, 2), KVCache(2), np.zeros((1, 1), int)
    with mt.no_grad():
        with pytest.raises(ValueError, match="intervals must lie in the keys 0 .. 0, got 0 .. 5"):
            block(mt.Tensor(np.ones((1, 1, 8), np.float32)), zero, zero + 5, cache)


def test_gradients_are_recorded_by_the_layers_and_a_cache_refuses_them():
    block = block_of(8, 2)
    zero = np.zeros((1, 1), int)
    with pytest.raises(RuntimeError, match="written in place"):
        block(mt.Tensor(np.zeros((1, 1, 8), np.float32)), zero, zero, KVCache(2))

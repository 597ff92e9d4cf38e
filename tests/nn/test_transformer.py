"""Layers and the transformer block: shapes, gradients, dropout, and what a layer may not see."""

from functools import reduce

import numpy as np
import pytest

import minitune as mt
from minitune import Tensor, nn, ops

RNG = np.random.default_rng(0)


def causal(*shape):
    time = np.broadcast_to(np.arange(shape[1]), shape)
    return np.zeros_like(time), time


def in_float64(module):
    """The module with float64 parameters: a gradient check needs them."""
    for p in module.parameters():
        p.data = p.data.astype(np.float64)
    return module


@pytest.mark.parametrize("make, inputs", [
    (lambda: nn.Linear(3, 2), (2, 3)), (lambda: nn.Linear(3, 2, bias=False), (1, 4, 3)),
    (lambda: nn.LayerNorm(3), (2, 3)), (lambda: nn.RMSNorm(3), (2, 3)), (lambda: nn.MLP(2), (3, 2)),
], ids=["Linear", "without bias", "LayerNorm", "RMSNorm", "MLP"])
def test_gradients_of_inputs_and_parameters_agree_with_central_differences(make, inputs):
    layer = in_float64(make())
    parameters = dict(layer.named_parameters())
    for p in parameters.values():
        p.data += RNG.standard_normal(p.shape) * 0.3

    def function(x, *values):
        for name, value in zip(parameters, values, strict=True):
            *path, last = name.split(".")
            setattr(reduce(getattr, path, layer), last, value)
        return layer(x)

    mt.gradcheck(function, RNG.standard_normal(inputs), *(p.data for p in parameters.values()))


def test_gradients_through_a_block_agree_with_central_differences():
    block = in_float64(nn.TransformerBlock(4, 2, n_layer=1))
    for p in block.parameters():
        p.data += RNG.standard_normal(p.shape) * 0.3
    first = np.array([[0, 0, 0, 1], [0, 0, 2, 2]])                          # padding, and two packed documents
    last = np.array([[0, 1, 2, 0], [0, 1, 2, 3]])
    mt.gradcheck(lambda x: block(x, first, last), RNG.standard_normal((2, 4, 4)))


def test_a_residual_is_added_by_the_layer():
    x, residual = (Tensor(RNG.standard_normal((2, 8)).astype(np.float32)) for _ in range(2))
    for layer in nn.Linear(8, 8), nn.MLP(8):
        np.testing.assert_allclose(layer(x, residual).numpy(), (layer(x) + residual).numpy(), rtol=1e-5, atol=1e-6)


def test_a_block_with_and_without_dropout_is_the_same_in_evaluation():
    x, (first, last) = Tensor(RNG.standard_normal((2, 5, 8)).astype(np.float32)), causal(2, 5)
    plain, dropping = nn.TransformerBlock(8, 2, n_layer=1), nn.TransformerBlock(8, 2, n_layer=1, dropout=0.5)
    dropping.load_state_dict(plain.state_dict())
    np.testing.assert_array_equal(dropping.eval()(x, first, last).numpy(), plain(x, first, last).numpy())
    trained = dropping.train()(x, first, last).numpy()
    assert not np.allclose(trained, plain(x, first, last).numpy())
    mt.seed(0)
    once = dropping(x, first, last).numpy()
    mt.seed(0)
    np.testing.assert_array_equal(dropping(x, first, last).numpy(), once)


def test_dropout_works_only_while_training():
    layer, x = nn.Dropout(0.5), Tensor(np.ones(100, np.float32))
    assert (layer(x).numpy() == 0).any()
    assert layer.eval()(x) is x and nn.Dropout(0.0)(x) is x


def test_a_causal_block_does_not_see_the_future():
    block, x = nn.TransformerBlock(8, 2, n_layer=1), RNG.standard_normal((1, 6, 8)).astype(np.float32)
    before = block(Tensor(x), *causal(1, 6)).numpy()
    x[:, 4:] += 1
    after = block(Tensor(x), *causal(1, 6)).numpy()
    np.testing.assert_allclose(before[:, :4], after[:, :4], rtol=1e-5, atol=1e-6)       # float32 roundings
    assert not np.allclose(before[:, 4:], after[:, 4:])


def test_layers_that_write_to_the_residual_path_start_smaller():
    block = nn.TransformerBlock(64, 2, n_layer=8)
    for layer in block.attention.output, block.mlp.down:
        assert abs(layer.weight.numpy().std() / (0.02 / 4) - 1) < 0.1       # sqrt(2 * 8) = 4
    assert abs(block.mlp.up.weight.numpy().std() / 0.02 - 1) < 0.1


def test_effective_weights_are_what_a_layer_multiplies_with():
    linear, embedding = nn.Linear(3, 4), nn.Embedding(5, 3)
    x = Tensor(RNG.standard_normal((2, 3)).astype(np.float32))
    np.testing.assert_array_equal(linear(x).numpy(), ops.linear(x, linear.effective_weight(), linear.bias).numpy())
    assert embedding.effective_weight() is embedding.weight
    np.testing.assert_array_equal(embedding(np.array([2])).numpy(), embedding.weight.numpy()[[2]])


@pytest.mark.parametrize("arguments, message", [
    ((10, 3), "heads must divide channels, got 10 channels and 3 heads. Give numbers with a whole quotient, or head_size"),
    ((8, 4, 3), "kv_heads must divide heads, .* got 4 heads and 3 kv_heads"),
    ((8, 0), "heads must be an int of at least 1, got 0"), ((8, 2.0), "heads must be an int of at least 1, got 2.0"),
    ((8, 2, 0), "kv_heads must be an int of at least 1, got 0"), ((0, 2), "channels must be an int of at least 1, got 0"),
    ((8, 2, None, True, 0), "head_size must be an int of at least 1, got 0"),
])
def test_heads_that_do_not_fit_raise(arguments, message):
    with pytest.raises(ValueError, match=f"Attention: {message}"):
        nn.Attention(*arguments)


@pytest.mark.parametrize("kernels", [False, True])
@pytest.mark.parametrize("B, T", [(0, 3), (2, 0), (0, 0)])
def test_no_rows_or_no_tokens_give_none_and_gradients_of_0(B, T, kernels):
    block, x = nn.TransformerBlock(8, 2, n_layer=1), Tensor(np.ones((B, T, 8), np.float32), requires_grad=True)
    with mt.kernels(kernels):
        y = block(x, *causal(B, T))
        y.sum().backward()
    assert y.shape == x.grad.shape == (B, T, 8)
    assert not any(p.grad.any() for p in block.parameters())

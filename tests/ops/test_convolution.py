"""conv2d and pooling beyond their formula: single windows by hand, ties, NaN, shapes that do not fit."""

import numpy as np
import pytest

from minitune import Tensor, nn, ops

RNG = np.random.default_rng(0)


def test_every_output_is_the_sum_over_its_window():
    x, weight, bias = RNG.standard_normal((2, 3, 6, 7)), RNG.standard_normal((4, 3, 3, 2)), RNG.standard_normal(4)
    y = ops.conv2d(Tensor(x), Tensor(weight), Tensor(bias), stride=2, padding=1).numpy()
    padded = np.pad(x, [(0, 0), (0, 0), (1, 1), (1, 1)])
    assert y.shape == (2, 4, 3, 4)
    for b, o, i, j in np.ndindex(y.shape):
        window = padded[b, :, 2 * i : 2 * i + 3, 2 * j : 2 * j + 2]
        np.testing.assert_allclose(y[b, o, i, j], (window * weight[o]).sum() + bias[o], rtol=1e-12, atol=1e-13)


def test_a_filter_of_one_pixel_is_a_linear_layer_on_the_channels():
    x, weight = RNG.standard_normal((2, 3, 4, 5)), RNG.standard_normal((6, 3, 1, 1))
    y = ops.conv2d(Tensor(x), Tensor(weight)).numpy()
    linear = ops.linear(Tensor(x.transpose(0, 2, 3, 1)), Tensor(weight[:, :, 0, 0])).numpy()
    np.testing.assert_allclose(y, linear.transpose(0, 3, 1, 2), rtol=1e-12)


def test_the_first_of_equal_elements_takes_the_gradient():
    x = Tensor(np.zeros((1, 1, 2, 4)), requires_grad=True)
    ops.max_pool2d(x, 2).backward(np.array([[[[3.0, 5.0]]]]))
    assert x.grad.ravel().tolist() == [3, 0, 5, 0, 0, 0, 0, 0]


@pytest.mark.parametrize("place", range(4))
def test_nan_in_a_window_shows(place):
    x = np.zeros((1, 1, 2, 4))
    x[0, 0, place // 2, place % 2] = np.nan
    for pool in ops.max_pool2d, ops.avg_pool2d:
        assert np.isnan(pool(Tensor(x), 2).numpy()).tolist() == [[[[True, False]]]]


@pytest.mark.parametrize("two", [np.int64(2), np.uint8(2)])
def test_sizes_may_be_numpys_integers(two):
    x, weight = RNG.standard_normal((2, 3, 6, 6)).astype(np.float32), RNG.standard_normal((4, 3, 2, 2)).astype(np.float32)
    for call in (lambda n: ops.conv2d(Tensor(x), Tensor(weight), stride=n, padding=n), lambda n: ops.max_pool2d(Tensor(x), n),
                 lambda n: ops.avg_pool2d(Tensor(x), n, n)):
        got, expected = call(two).numpy(), call(2).numpy()
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, expected)


X, WEIGHT = Tensor(np.zeros((1, 2, 4, 5))), Tensor(np.zeros((3, 2, 3, 3)))


@pytest.mark.parametrize(("call", "message"), [
    (lambda: ops.conv2d(Tensor(np.zeros((4, 5))), WEIGHT), r"conv2d: expected x \(B, C, H, W\).* got \(4, 5\).*\[:, None\]"),
    (lambda: ops.conv2d(X, Tensor(np.zeros((3, 1, 3, 3)))), r"conv2d: expected .* \(1, 2, 4, 5\) and \(3, 1, 3, 3\)"),
    (lambda: ops.conv2d(X, WEIGHT, Tensor(np.zeros(2))), r"conv2d: bias must be \(F,\) = \(3,\), got \(2,\)"),
    (lambda: ops.conv2d(X, WEIGHT, padding=-1), "conv2d: padding must be an int for both axes of at least 0, got -1"),
    (lambda: ops.conv2d(X, WEIGHT, padding=1.0), "conv2d: padding must be an int for both axes of at least 0, got 1.0"),
    (lambda: ops.conv2d(X, WEIGHT, padding="same"), "conv2d: padding must be an int for both axes of at least 0, got 'same'"),
    (lambda: ops.conv2d(X, WEIGHT, stride=0), "conv2d: stride must be an int for both axes of at least 1, got 0"),
    (lambda: ops.conv2d(X, WEIGHT, stride=(2, 2)), r"conv2d: stride must be an int for both axes of at least 1, got \(2, 2\)"),
    (lambda: ops.conv2d(Tensor(np.zeros((1, 0, 4, 5))), Tensor(np.zeros((3, 0, 3, 3)))),
     r"conv2d: expected at least one channel and one filter, got x \(1, 0, 4, 5\) and weight \(3, 0, 3, 3\)"),
    (lambda: ops.conv2d(X, Tensor(np.zeros((0, 2, 3, 3)))), r"conv2d: expected at least one channel and one filter"),
    (lambda: nn.Conv2d(0, 8, 3), "Conv2d: inputs must be an int of at least 1, got 0"),
    (lambda: nn.Conv2d(3, 8.0, 3), "Conv2d: outputs must be an int of at least 1, got 8.0"),
    (lambda: nn.Conv2d(3, 8, (3, 3)), r"Conv2d: kernel_size must be an int for both axes of at least 1, got \(3, 3\)"),
    (lambda: ops.conv2d(Tensor(np.zeros((1, 2, 2, 5))), WEIGHT), "conv2d: a window of 3 x 3 does not fit in an image of 2 x 5"),
    (lambda: ops.max_pool2d(Tensor(np.zeros((2, 4, 5))), 2), r"max_pool2d: expected x \(B, C, H, W\), got \(2, 4, 5\)"),
    (lambda: ops.avg_pool2d(X, 5), "avg_pool2d: a window of 5 x 5 does not fit in an image of 4 x 5"),
    (lambda: ops.max_pool2d(X, 0), "max_pool2d: kernel_size must be an int for both axes of at least 1, got 0"),
    (lambda: ops.max_pool2d(X, (2, 2)), r"max_pool2d: kernel_size must be an int for both axes of at least 1, got \(2, 2\)"),
    (lambda: ops.avg_pool2d(X, 2, (2, 1)), r"avg_pool2d: stride must be an int for both axes of at least 1, got \(2, 1\)"),
])
def test_shapes_that_do_not_fit_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


# ---- The layer -------------------------------------------------------------------------------------------------------

def test_the_layer_convolves_with_its_own_weights():
    layer = nn.Conv2d(2, 3, 3, stride=2, padding=1)
    layer.bias.data[:] = [1, 2, 3]
    x = Tensor(RNG.standard_normal((2, 2, 5, 5)).astype(np.float32))
    np.testing.assert_array_equal(layer(x).numpy(), ops.conv2d(x, layer.weight, layer.bias, 2, 1).numpy())
    assert layer(x).shape == (2, 3, 3, 3) and [name for name, _ in layer.named_parameters()] == ["weight", "bias"]
    assert (layer.weight.decays, layer.bias.decays) == (True, False)
    assert [name for name, _ in nn.Conv2d(2, 3, kernel_size=1, bias=False).named_parameters()] == ["weight"]


def test_numbers_keep_their_size_through_many_layers_of_relu():
    """relu leaves half of the mean square, which sqrt(2 / fan in) makes up for: 1 on average over filters, and without the 2
    1 / 64 after these six layers. What is left in 4 x 4 windows that overlap varies: a factor of 2 is allowed."""
    x = Tensor(RNG.standard_normal((4, 64, 16, 16)).astype(np.float32))
    for _ in range(6):
        x = nn.Conv2d(64, 64, 3)(ops.relu(x))
    assert 0.5 < (x.numpy() ** 2).mean() < 2

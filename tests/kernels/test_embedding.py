"""embedding on the emulated GPU: sums of equal ids in any arrangement, both dtypes, any thread order, ids without a row."""

import numpy as np
import pytest
from cases import check_contract

from minitune.ops.embedding import embedding_forward
from minitune.tensor import _needs_of
from minitune.twins.cuda import embedding as twin
from minitune.twins.cuda import emulation

BFLOAT16 = pytest.importorskip("ml_dtypes").bfloat16
pytestmark = pytest.mark.skipif(emulation.compiler() is None, reason="the emulation needs g++")
NEEDS = _needs_of(embedding_forward)([True, False])
DTYPES = [np.float32, BFLOAT16]
RNG = np.random.default_rng(0)
IDS = {                 # in a table of 33 rows; a block adds up 32 sorted ids
    "any": RNG.integers(0, 33, 1025), "one": np.full(1025, 7), "each once": RNG.permutation(33), "the last": np.array([32]),
    "runs of a piece": np.arange(256) // 32, "runs across pieces": (np.arange(255) + 16) // 32,
    "a run that ends with a piece": np.array([0] * 31 + [1] * 65 + [2] * 32),
    "two runs share a piece": np.array([3] * 40 + [4] * 47),
    "mostly one": np.where(RNG.random(1025) < 0.9, 5, RNG.integers(0, 33, 1025)), "nothing": np.zeros(0, int),
    "rows": RNG.integers(0, 33, (5, 31)), "transposed": RNG.integers(0, 33, (31, 2)).T, "no axes": np.array(4),
    "small integers": RNG.integers(0, 33, 70).astype(np.uint8), "int32": RNG.integers(0, 33, 70).astype(np.int32),
}


def whole_numbers(*shape, dtype, seed=0):
    """Numbers from -4 to 4: float32 adds them without an error, in any order."""
    return np.random.default_rng(seed).integers(-4, 5, shape).astype(dtype)


def gradient(grad, ids, shape):
    """By the reference's rule in float64: each row of grad is added to its id's row."""
    table = np.zeros(shape)
    np.add.at(table, ids.reshape(-1), grad.astype(np.float64).reshape(-1, shape[1]))
    return table


def run(weight, ids, grad):
    y, saved = twin.embedding_forward(weight, ids, needs=NEEDS)
    grad_weight, none = twin.embedding_backward(grad, *saved, needs=NEEDS)
    assert none is None
    return y, grad_weight


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", IDS)
def test_every_row_is_found_and_every_gradient_counted_once(name, dtype):
    """Exactly: whole numbers, whose sums are rounded once, to bfloat16."""
    ids = IDS[name]
    for C in (1, 33):
        weight, grad = whole_numbers(33, C, dtype=dtype), whole_numbers(*ids.shape, C, dtype=dtype, seed=1)
        y, grad_weight = run(weight, ids, grad)
        assert y.dtype == grad_weight.dtype == dtype
        np.testing.assert_array_equal(y, weight[ids])
        np.testing.assert_array_equal(grad_weight, gradient(grad, ids, weight.shape).astype(dtype))
        check_contract(twin.embedding_forward, twin.embedding_backward, [weight, ids], {}, NEEDS)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("C", [2, 8, 31, 128, 255, 1025])
def test_takes_any_number_of_channels_and_rows_that_begin_anywhere(C, dtype):
    ids = np.array([2, 0, 2, 1] * 9)
    for start in (0, 1):                        # an array that begins a number after a multiple of 16 bytes
        weight = whole_numbers(3 * C + 1, dtype=dtype)[start : start + 3 * C].reshape(3, C)
        grad = whole_numbers(36, C, dtype=dtype, seed=1)
        y, grad_weight = run(weight, ids, grad)
        np.testing.assert_array_equal(y, weight[ids])
        np.testing.assert_array_equal(grad_weight, gradient(grad, ids, weight.shape).astype(dtype))


@pytest.mark.parametrize("dtype", DTYPES)
def test_any_order_of_threads_gives_the_same_bits(dtype):
    grad = np.random.default_rng(1).standard_normal((1025, 33)).astype(dtype)
    weight, ids, results = grad[:33], IDS["mostly one"], []
    for order in emulation.ORDERS:
        with emulation.thread_order(order):
            results.append(tuple(a.tobytes() for a in run(weight, ids, grad)))
    assert len(set(results)) == 1


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_id_without_a_row_gives_nan_and_moves_nothing(dtype):
    weight = whole_numbers(5, 8, dtype=dtype)
    ids = np.array([-1, 0, 5, 4, 2**31 - 1, -(2**31), 4] + [6] * 100 + [-2] * 100)
    grad, known = whole_numbers(len(ids), 8, dtype=dtype, seed=1), (ids >= 0) & (ids < 5)
    y, grad_weight = run(weight, ids, grad)
    assert np.isnan(y[~known]).all()
    np.testing.assert_array_equal(y[known], weight[ids[known]])
    np.testing.assert_array_equal(grad_weight, gradient(grad[known], ids[known], weight.shape).astype(dtype))


def test_nan_stays_with_its_token():
    weight, ids = whole_numbers(33, 31, dtype=np.float32), IDS["mostly one"]
    weight[5, 2] = np.nan
    grad = whole_numbers(len(ids), 31, dtype=np.float32, seed=1)
    grad[np.argmax(ids == 5), 3] = np.nan
    y, grad_weight = run(weight, ids, grad)
    np.testing.assert_array_equal(np.isnan(y), np.isnan(weight[ids]))
    assert np.argwhere(np.isnan(grad_weight)).tolist() == [[5, 3]]


def test_a_table_without_channels_has_empty_rows():
    y, grad_weight = run(np.zeros((3, 0), np.float32), np.array([2, 1]), np.zeros((2, 0), np.float32))
    assert (y.shape, grad_weight.shape) == ((2, 0), (3, 0))

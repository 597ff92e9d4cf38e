"""Arrays, twins and random numbers."""

import sys
import types
import warnings

import numpy as np
import pytest

import minitune as mt
from minitune import backend, ops
from minitune.backend import philox, random

# ---- Arrays ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("data, dtype", [
    (1.5, np.float32), (2, np.int64), (True, np.bool_), ([1.0, 2], np.float32), ([1, 2], np.int64), ([], np.float32),
    (np.ones(2), np.float64), (np.ones(2, np.float16), np.float16),
    (np.uint8(3), np.uint8), (np.float64(1), np.float64),
], ids=repr)
def test_numbers_and_lists_become_float32_or_int64_and_arrays_keep_their_dtype(data, dtype):
    array = backend.as_array(data)
    assert isinstance(array, np.ndarray) and array.dtype == dtype


def test_an_array_is_taken_without_a_copy():
    a = np.ones(3)
    assert backend.as_array(a) is a


@pytest.mark.parametrize("data", ["text", ["a", "b"], np.array([1j]), None, np.array(["x"])], ids=repr)
def test_what_is_no_number_raises(data):
    with pytest.raises(TypeError, match="expected numbers, got dtype"):
        backend.as_array(data)


@pytest.mark.parametrize("a, b", [((3, 4), (4, 2)), ((2, 3, 4), (4, 5)), ((2, 1, 3, 4), (4, 5)), ((2, 3, 4), (2, 4, 5)),
                                  ((3, 4), (2, 4, 5)), ((0, 3, 4), (4, 5)), ((2, 3, 4), (1, 4, 5))])
def test_the_one_matrix_product_is_numpys(a, b):
    a, b = np.random.default_rng(0).standard_normal(a), np.random.default_rng(1).standard_normal(b)
    np.testing.assert_allclose(backend.matmul(a, b), a @ b, rtol=1e-12)     # the same sums, in another blocking


def test_numpy_arrays_live_on_the_cpu():
    assert backend.device_of(np.ones(1)) == "cpu" and backend.array_module(np.ones(1)) is np


# ---- Philox ------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("counter, key, expected", [        # kat_vectors of Random123, philox 4x32 10
    ("00000000 00000000 00000000 00000000", "00000000 00000000", "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff", "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0", "d16cfe09 94fdcceb 5001e420 24126ea1"),
], ids=["zeros", "ones", "pi"])
def test_philox_gives_the_published_numbers(counter, key, expected):
    c, k = ([int(word, 16) for word in words.split()] for words in (counter, key))
    got = philox(k[0] | k[1] << 32, c[2] | c[3] << 32, c[0] | c[1] << 32, 4)
    assert got.dtype == np.uint32
    assert " ".join(f"{int(word):08x}" for word in got) == expected


def test_a_counter_continues_exactly_where_the_last_call_stopped():
    whole = philox(7, 1, 10, 40)
    parts = [philox(7, 1, 10, 16), philox(7, 1, 14, 20), philox(7, 1, 19, 4)]
    assert np.concatenate(parts).tolist() == whole.tolist()


def test_a_counter_passes_beyond_32_bits():
    assert philox(0, 0, 2**32 - 1, 8)[4:].tolist() == philox(0, 0, 2**32, 4).tolist()


def test_seeds_streams_and_counters_give_different_numbers():
    places = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1), (2**32, 0, 0), (0, 2**32, 0), (0, 0, 2**32)]
    assert len({tuple(philox(*place, 4).tolist()) for place in places}) == len(places)


@pytest.mark.parametrize("count", [0, 1, 3, 4, 5])
def test_any_count_of_numbers_is_given_and_is_a_beginning_of_the_stream(count):
    assert philox(0, 0, 0, count).tolist() == philox(0, 0, 0, 8)[:count].tolist()


# ---- Streams -----------------------------------------------------------------------------------------------------

def test_seed_starts_every_stream_again():
    for stream in backend.STREAMS:
        mt.seed(3)
        first = random.uniform(stream, 5), random.uniform(stream, 5)
        mt.seed(3)
        again = random.uniform(stream, 5), random.uniform(stream, 5)
        np.testing.assert_array_equal(first, again)
        assert not np.array_equal(*first)
        mt.seed(4)
        assert not np.array_equal(random.uniform(stream, 5), first[0])


def test_streams_do_not_disturb_each_other():
    expected = random.uniform("init", 6)
    mt.seed(0)
    random.uniform("dropout", 1000)
    np.testing.assert_array_equal(random.uniform("init", 6), expected)


def test_seed_and_counters_are_all_there_is_to_store():
    random.uniform("dropout", 10)
    stored = random.seed, dict(random.counters)
    expected = random.normal("dropout", 6)
    mt.seed(99)
    random.seed = stored[0]
    random.counters.update(stored[1])
    np.testing.assert_array_equal(random.normal("dropout", 6), expected)


def test_reserved_places_never_overlap():
    a, b = random.reserve("order", 5), random.reserve("order", 1)
    assert (a, b) == ((0, 2, 0), (0, 2, 2))             # five numbers take two blocks of four


def test_a_seed_of_64_bits_is_used_whole():
    mt.seed(2**64 - 1)
    high = random.uniform("init", 3)
    mt.seed(2**32 - 1)
    assert not np.array_equal(random.uniform("init", 3), high)


@pytest.mark.parametrize("bad", [-1, 2**64, 1.5, "1", None, True])
def test_a_bad_seed_raises_and_changes_nothing(bad):
    mt.seed(5)
    random.uniform("init", 4)
    with pytest.raises(ValueError, match="seed: expected an integer from 0 to"):
        mt.seed(bad)
    assert (random.seed, random.counters["init"]) == (5, 1)


def test_numpy_integers_are_seeds():
    mt.seed(np.int64(6))
    assert random.seed == 6 and type(random.seed) is int


def test_uniform_numbers_are_in_0_to_1_and_exact_in_float32():
    u = random.uniform("init", 100_000)
    assert 0 <= u.min() and u.max() < 1 and np.array_equal(u.astype(np.float32), u)
    assert abs(u.mean() - 0.5) < 5 / np.sqrt(12 * len(u))                   # five standard errors
    assert abs(u.var() - 1 / 12) < 5 * np.sqrt(1 / 180 / len(u))
    assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 5 / np.sqrt(len(u))


def test_normal_numbers_have_the_moments_of_the_normal_distribution():
    n = random.normal("init", 100_000)
    error = 5 / np.sqrt(len(n))                                             # five standard errors
    assert abs(n.mean()) < error
    assert abs(n.var() - 1) < error * np.sqrt(2)
    assert abs((n**3).mean()) < error * np.sqrt(15)
    assert abs((n**4).mean() - 3) < error * np.sqrt(96)
    assert np.isfinite(n).all()


@pytest.mark.parametrize("count", [0, 1, 2, 1000])
def test_a_permutation_holds_every_number_once(count):
    assert sorted(random.permutation("order", count).tolist()) == list(range(count))


def test_permutations_differ_from_call_to_call_and_every_place_is_reached():
    assert random.permutation("order", 20).tolist() != random.permutation("order", 20).tolist()
    firsts = [int(random.permutation("order", 4)[0]) for _ in range(400)]
    assert min(np.bincount(firsts, minlength=4)) > 60           # 100 each expected; 60 is more than 4 deviations below


# ---- Dropout masks -----------------------------------------------------------------------------------------------

def test_dropout_drops_its_share_keeps_the_mean_and_scales_the_rest():
    y = ops.dropout(mt.Tensor(np.ones(40_000)), 0.3).numpy()
    assert abs((y == 0).mean() - 0.3) < 5 * np.sqrt(0.3 * 0.7 / y.size)     # five standard errors
    np.testing.assert_allclose(y[y != 0], 1 / 0.7, rtol=1e-15)              # one rounding


def test_dropout_masks_differ_from_call_to_call_and_come_back_with_the_seed():
    x = mt.Tensor(np.ones(100))
    first, second = ops.dropout(x, 0.5).numpy(), ops.dropout(x, 0.5).numpy()
    assert not np.array_equal(first, second)
    mt.seed(0)
    np.testing.assert_array_equal(ops.dropout(x, 0.5).numpy(), first)


def test_dropout_of_zero_gives_its_input_back_and_takes_no_random_numbers():
    x = mt.Tensor([1.0])
    assert ops.dropout(x, 0.0) is x and not random.counters["dropout"]


def forget_twins():
    backend.twin.cache_clear()
    backend.twins_in.cache_clear()


# ---- Twins -------------------------------------------------------------------------------------------------------

@pytest.fixture
def tanh_twin(monkeypatch):
    """A twin of tanh in a made-up device folder: it answers 7 and refuses arrays of more than three numbers."""
    module = types.ModuleType("minitune.twins.cpu.elementwise")
    module.tanh_forward = lambda x, *, needs: (np.full_like(x, 7), (x,))
    module.tanh_backward = lambda grad, x, *, needs: (grad * 11,)
    module.tanh_unsupported = lambda x: "it takes at most 3 numbers" if x.size > 3 else None
    monkeypatch.setitem(sys.modules, module.__name__, module)
    forget_twins()
    yield
    forget_twins()


def test_a_twin_is_found_by_its_name_and_brings_its_own_backward(tanh_twin):
    x = mt.Tensor([1.0], requires_grad=True)
    y = ops.tanh(x)
    y.backward()
    assert (y.item(), x.grad.item()) == (7.0, 11.0)


def test_kernels_false_runs_the_reference_and_is_undone_after_an_exception(tanh_twin):
    with pytest.raises(KeyError), mt.kernels(False):
        assert ops.tanh(mt.Tensor([0.0])).item() == 0
        raise KeyError
    assert ops.tanh(mt.Tensor([0.0])).item() == 7


def test_float64_takes_the_reference_without_a_word(tanh_twin):
    assert ops.tanh(mt.Tensor(np.zeros(9))).numpy().tolist() == [0.0] * 9


def test_a_twin_that_cannot_take_its_inputs_warns_once_and_the_reference_runs(tanh_twin):
    x = mt.Tensor(np.zeros(4, np.float32))
    with pytest.warns(mt.KernelFallback, match="tanh: it takes at most 3 numbers; the slower reference runs instead"):
        assert ops.tanh(x).numpy().tolist() == [0.0] * 4
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ops.tanh(x)


def test_an_operation_without_a_twin_runs_its_reference(tanh_twin):
    assert backend.twin("cpu", "elementwise", "no_such_operation") is None
    assert backend.twin("cpu", "no_such_stem", "tanh") is None
    assert backend.twin("no_such_device", "elementwise", "tanh") is None


def test_a_fault_inside_a_twins_file_is_not_hidden(monkeypatch):
    def broken(place):
        raise ModuleNotFoundError("No module named 'nubma'", name="nubma")

    monkeypatch.setattr(backend, "import_module", broken)
    forget_twins()
    with pytest.raises(ModuleNotFoundError, match="nubma"):
        backend.twin("cpu", "broken_file", "tanh")
    forget_twins()


def test_a_missing_compiler_means_no_twin(monkeypatch):
    def no_numba(place):
        raise ModuleNotFoundError("No module named 'numba'", name="numba")

    monkeypatch.setattr(backend, "import_module", no_numba)
    forget_twins()
    assert backend.twin("cpu", "elementwise", "gelu") is None
    forget_twins()


def test_float64_beside_a_number_on_the_left_takes_the_reference(monkeypatch):
    module = types.ModuleType("minitune.twins.cpu.elementwise")
    module.sub_forward, module.sub_backward, module.sub_unsupported = None, None, lambda a, b: None
    monkeypatch.setitem(sys.modules, module.__name__, module)
    forget_twins()
    try:
        assert (1 - mt.Tensor(np.ones(2))).dtype == np.float64
    finally:
        forget_twins()


def test_a_compiler_that_refuses_the_installed_numpy_is_told_once_and_the_reference_runs(monkeypatch):
    def refusing(place):
        raise ImportError("Numba needs NumPy 2.2 or less. Got NumPy 2.4.")      # numba's own kind of error: it has no name

    monkeypatch.setattr(backend, "import_module", refusing)
    forget_twins()
    with pytest.warns(mt.KernelFallback, match="elementwise: its compiled twin cannot be loaded .Numba needs NumPy 2.2"):
        assert backend.twin("cpu", "elementwise", "gelu") is None
    assert backend.twin("cpu", "elementwise", "gelu") is None
    forget_twins()

"""gradcheck passes what is right and, above all, fails what is wrong: one test for each known way to be wrong."""

import heapq
from importlib import import_module
from itertools import count

import numpy as np
import pytest

import minitune as mt
from minitune import Tensor, ops
from minitune import tensor as engine
from minitune.tensor import apply

elementwise, matmul_module, softmax_module = (import_module(f"minitune.ops.{name}")
                                              for name in ("elementwise", "matmul", "softmax"))
SQUARE = np.random.default_rng(0).standard_normal((2, 3, 3))


def test_a_right_gradient_passes():
    mt.gradcheck(lambda a, b: (a @ b).tanh() / (a * a + 1), SQUARE[0], SQUARE[1])


def test_float32_arrays_are_checked_in_float64():
    seen = []

    def function(x):
        seen.append(x.dtype)
        return x.tanh()

    mt.gradcheck(function, np.ones(2, np.float32))
    assert set(seen) == {np.dtype(np.float64)}


def test_arrays_come_back_unchanged():
    x = np.array([1.0, 2.0])
    mt.gradcheck(lambda x: x * x, x)
    assert x.tolist() == [1.0, 2.0]


def test_integer_arrays_are_passed_as_they_are():
    mt.gradcheck(lambda weight, ids: ops.embedding(weight, ids), SQUARE[0], np.array([2, 0, 2]))


def test_a_backward_scaled_by_seven_fails(monkeypatch):
    right = softmax_module.softmax_backward
    monkeypatch.setattr(softmax_module, "softmax_backward", lambda *a, needs: (7 * right(*a, needs=needs)[0],))
    with pytest.raises(AssertionError, match=r"input 0, element \(.*backward gives .* central differences give"):
        mt.gradcheck(ops.softmax, SQUARE[0])


@pytest.mark.parametrize("module, name", [(elementwise, "sub"), (elementwise, "div"), (matmul_module, "matmul")])
def test_swapped_gradients_fail(monkeypatch, module, name):
    right = getattr(module, f"{name}_backward")
    monkeypatch.setattr(module, f"{name}_backward", lambda *a, needs: right(*a, needs=needs)[::-1])
    with pytest.raises(AssertionError, match="are wrong"):
        mt.gradcheck(getattr(ops, name), SQUARE[0], SQUARE[1])


@pytest.mark.parametrize("shape", [(1, 3), (3, 1), (3,), ()])
def test_a_missing_unbroadcast_fails(monkeypatch, shape):
    monkeypatch.setattr(elementwise, "unbroadcast", lambda grad, shape: grad)
    with pytest.raises(AssertionError, match="gradient 1 has shape"):
        mt.gradcheck(ops.add, SQUARE[0], np.ones(shape))


def test_a_walk_that_overwrites_instead_of_adding_at_a_diamond_fails(monkeypatch):
    def overwriting_walk(last, grad):
        grads, waiting = {last: grad}, [(-last.number, last)]
        while waiting:
            node = heapq.heappop(waiting)[1]
            for parent, part in zip(node.parents, node.run_backward(grads.pop(node)), strict=True):
                if isinstance(parent, Tensor):
                    engine._add_to_leaf(parent, part, owned=False)
                elif parent is not None:
                    if parent not in grads:
                        heapq.heappush(waiting, (-parent.number, parent))
                    grads[parent] = part

    def diamond(x):
        y = x.tanh()
        return y * 3 + y.exp()

    mt.gradcheck(diamond, SQUARE[0])
    monkeypatch.setattr(engine, "_walk", overwriting_walk)
    mt.gradcheck(lambda x: x.tanh().exp(), SQUARE[0])           # without a diamond this walk is right
    with pytest.raises(AssertionError, match="are wrong"):
        mt.gradcheck(diamond, SQUARE[0])


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_gradient_that_is_not_finite_fails(monkeypatch, value):
    monkeypatch.setattr(elementwise, "exp_backward", lambda grad, y, *, needs: (np.full_like(y, value),))
    with pytest.raises(AssertionError, match="are wrong"):
        mt.gradcheck(ops.exp, SQUARE[0])


def test_one_wrong_element_is_found_and_named(monkeypatch):
    def almost(grad, y, *, needs):
        grad = grad * y
        grad[1, 2] *= 1.001
        return (grad,)

    monkeypatch.setattr(elementwise, "exp_backward", almost)
    with pytest.raises(AssertionError, match=r"element \(1, 2\).*; 1 of 9 are wrong"):
        mt.gradcheck(ops.exp, SQUARE[0])


@pytest.mark.parametrize("zero", [True, False], ids=["zero", "None"])
def test_a_gradient_that_is_zero_or_none_where_one_is_due_fails(monkeypatch, zero):
    monkeypatch.setattr(elementwise, "exp_backward", lambda grad, y, *, needs: (grad * 0 if zero else None,))
    with pytest.raises(AssertionError, match="backward gives -?0"):
        mt.gradcheck(ops.exp, SQUARE[0])


def test_a_function_that_loses_its_history_fails():
    with pytest.raises(AssertionError, match="backward gives 0"):
        mt.gradcheck(lambda x: Tensor(x.numpy() * 2), SQUARE[0])


def test_a_gradient_of_a_constant_is_zero_and_passes():
    mt.gradcheck(lambda x, y: x * 1.0, np.ones(2), np.ones(2))


def test_a_backward_that_writes_into_its_gradient_fails():
    def forward(x, *, needs):
        return x * 2, ()

    def backward(grad, *, needs):
        grad *= 2
        return (grad,)

    with pytest.raises(AssertionError):
        mt.gradcheck(lambda x: apply(forward, backward, x), np.ones(3))


def test_a_function_that_is_not_deterministic_fails():
    calls = count()
    with pytest.raises(AssertionError, match="another result each time"):
        mt.gradcheck(lambda x: x * float(next(calls)), np.ones(2))
    with pytest.raises(AssertionError, match="another result each time"):
        mt.gradcheck(lambda x: ops.dropout(x, 0.5), np.ones(50))


@pytest.mark.parametrize("arrays", [(), (np.array([1, 2]),), (np.zeros((0, 3)),)], ids=["none", "integers", "empty"])
def test_nothing_to_check_is_an_error(arrays):
    with pytest.raises(ValueError, match="expected at least one array of floats"):
        mt.gradcheck(lambda *a: Tensor([1.0]), *arrays)

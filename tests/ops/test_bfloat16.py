"""bfloat16 beside float32: what an operation gives, what its gradients are, and what a model in bfloat16 keeps in float32."""

import numpy as np
import pytest

import minitune as mt
from minitune import backend, devices, models, ops
from minitune.data import Batch

BFLOAT16 = devices.float_dtype("bfloat16")
ROUNDING = 2.0**-8      # bfloat16 has 8 significant bits: the largest relative error of one rounding


def numbers(*shape):
    return np.random.default_rng(len(shape)).standard_normal(shape).astype(np.float32)


def leaf(array, dtype=np.float32):
    return mt.Tensor(array.astype(dtype), requires_grad=True)


def test_an_operation_computes_in_float32_and_rounds_once():
    x, weight, bias = numbers(5, 7).astype(BFLOAT16), numbers(3, 7), numbers(3)
    y = ops.linear(mt.Tensor(x), mt.Tensor(weight), mt.Tensor(bias))
    np.testing.assert_array_equal(y.data, (x.astype(np.float32) @ weight.T + bias).astype(BFLOAT16))


def test_each_gradient_has_the_dtype_of_its_input_and_a_parameters_is_not_rounded():
    x, weight = leaf(numbers(5, 7), BFLOAT16), leaf(numbers(3, 7))
    ops.linear(x, weight).sum().backward()
    assert (x.grad.dtype, weight.grad.dtype) == (BFLOAT16, np.float32)
    np.testing.assert_allclose(weight.grad, np.broadcast_to(x.data.astype(np.float32).sum(0), (3, 7)), rtol=1e-6)


def test_a_loss_stays_float32():
    logits, targets = mt.Tensor(numbers(40, 9).astype(BFLOAT16)), np.arange(40) % 9
    loss = ops.cross_entropy(logits, targets)
    assert loss.dtype == np.float32
    assert loss.item() == ops.cross_entropy(ops.cast(logits, "float32"), targets).item()


def test_operations_that_only_move_numbers_do_not_round_and_mix_into_bfloat16():
    x, y = numbers(2, 3).astype(BFLOAT16), numbers(2, 3)
    assert ops.reshape(mt.Tensor(x), 6).data.base is not None               # still a view
    both = ops.concat([mt.Tensor(x), mt.Tensor(y)])
    np.testing.assert_array_equal(both.data, np.concatenate([x, y.astype(BFLOAT16)]))


def test_cast_there_and_back():
    x = leaf(numbers(4, 3))
    y = ops.cast(x, "bfloat16")
    np.testing.assert_array_equal(y.data, x.data.astype(BFLOAT16))
    y.backward(np.ones((4, 3), BFLOAT16))
    assert x.grad.dtype == np.float32 and (x.grad == 1).all()
    assert ops.cast(x, None) is x and ops.cast(x, np.float32) is x
    assert ops.cast(x, "float64").dtype == np.float64
    with pytest.raises(ValueError, match='dtype: expected "float32", "bfloat16" or "float64", got \'half\''):
        ops.cast(x, "half")


def test_float64_does_not_stand_beside_bfloat16():
    with pytest.raises(TypeError, match="add: inputs must share one float dtype, got bfloat16 and float64"):
        ops.add(mt.Tensor(numbers(2).astype(BFLOAT16)), mt.Tensor(np.ones(2)))


def test_a_tensor_of_bfloat16_gives_numpy_float32():
    x = mt.Tensor(numbers(3).astype(BFLOAT16))
    assert x.numpy().dtype == np.float32 and x.data.dtype == BFLOAT16


def test_an_anomaly_in_bfloat16_is_found():
    with pytest.raises(FloatingPointError, match="log, forward: made 1 of 2 numbers NaN or infinite"), mt.detect_anomaly():
        ops.log(mt.Tensor(np.array([1.0, 0.0], BFLOAT16)))


def test_a_model_in_bfloat16_keeps_its_parameters_and_their_gradients_in_float32():
    model = models.GPT(models.GPTConfig(50, 8, 2, 2, 16)).to(dtype="bfloat16")
    batch = Batch.of_ids(np.arange(16).reshape(2, 8))
    assert model.features(batch).dtype == BFLOAT16
    loss, count, _ = model.loss(batch)["language_model"]
    loss.backward()
    assert loss.dtype == np.float32
    assert {p.dtype for p in model.parameters()} == {p.grad.dtype for p in model.parameters()} == {np.dtype(np.float32)}
    exact = models.GPT.loss(model.to(dtype="float64"), batch)["language_model"][0].item()
    assert abs(loss.item() - exact) < ROUNDING * exact / np.sqrt(count) * 4        # roundings of `count` logits, added up


def test_where_there_is_no_gpu_the_error_is_one_clear_line(monkeypatch):
    model = models.GPT(models.GPTConfig(50, 8, 1, 2, 16))
    monkeypatch.setitem(__import__("sys").modules, "cupy", None)
    with pytest.raises(RuntimeError, match=r'^device: "cuda" needs CuPy, which is not installed\. Install minitune\[cuda13\]'):
        model.to("cuda")
    with pytest.raises(ValueError, match='device: expected "cpu" or "cuda", got \'gpu\''):
        model.to("gpu")
    assert model.device == "cpu" and backend.array_module(model.norm.weight.data) is np

"""The GPT against gpt2.npz: values that plain PyTorch computed, committed, so that no PyTorch is needed to compare."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import numpy as np
import pytest

from minitune import models
from minitune.data import Batch
from minitune.ops import IGNORE
from minitune.optim import AdamW

GOLDEN = Path(__file__).parents[1] / "golden"
ROWS = [[3, 28, 0, 17, 17, 5, 11], [9, 1, 22, 4]]           # written out once more: make_golden.py imports nothing of ours

# float64: the same formulas in another order: some thousand roundings of 1e-16 of the largest number in a sum. The
# cross-entropy gradient subtracts nearly equal numbers, which the absolute tolerance covers.
RTOL, ATOL = 1e-7, 1e-10


@pytest.fixture(scope="module")
def golden():
    with np.load(GOLDEN / "gpt2.npz") as file:
        return {name: file[name] for name in file.files}


def model_of(golden, dtype):
    model = models.GPT(models.GPTConfig(vocab_size=29, block_size=9, n_layer=2, n_head=2, n_embd=16))
    model.load_state_dict({name.removeprefix("weight/"): a for name, a in golden.items() if name.startswith("weight/")})
    for parameter in model.parameters():
        parameter.data = parameter.data.astype(dtype)
    return model


def test_the_batch_is_the_one_that_the_values_were_made_for(golden):
    batch = Batch.causal([[row] for row in ROWS])
    np.testing.assert_array_equal(batch.ids, golden["ids"])
    np.testing.assert_array_equal(batch.targets, golden["targets"])
    assert IGNORE == -100 and batch.supervised == 9


def test_logits_agree_wherever_there_is_a_token(golden):
    batch = Batch.causal([[row] for row in ROWS])
    logits = model_of(golden, np.float64)(batch).numpy()
    assert logits.dtype == np.float64 and logits.shape == golden["logits"].shape
    np.testing.assert_allclose(logits[batch.valid], golden["logits"][batch.valid], RTOL, ATOL)


def test_loss_and_every_gradient_agree(golden):
    model = model_of(golden, np.float64)
    (loss, count, weight), = model.loss(Batch.causal([[row] for row in ROWS])).values()
    loss.backward()
    np.testing.assert_allclose(loss.item(), golden["loss"], RTOL)
    assert (count, weight) == (9, 1.0)
    gradients = {name: p.grad for name, p in model.named_parameters()}
    assert {f"gradient/{name}" for name in gradients} == {name for name in golden if name.startswith("gradient/")}
    for name, gradient in gradients.items():
        assert gradient.dtype == np.float64, name
        np.testing.assert_allclose(gradient, golden[f"gradient/{name}"], RTOL, ATOL, err_msg=name)


def test_ten_losses_of_adamw_in_float32_agree(golden):
    """1e-5 is some hundred float32 roundings of 6e-8; an error in moments, decay or the order of steps is far larger."""
    model, batch = model_of(golden, np.float32), Batch.causal([[row] for row in ROWS])
    optimizer, losses = AdamW(model, lr=1e-2, weight_decay=0.1), []
    for _ in golden["losses"]:
        (loss, count, _), = model.loss(batch).values()
        (loss * (1 / count)).backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item() / count)
    np.testing.assert_allclose(losses, golden["losses"], rtol=1e-5)
    assert losses[-1] < losses[0] / 5           # it did train: equal losses of a model at rest would say little


def test_the_committed_values_are_what_pytorch_computes_today(golden):
    pytest.importorskip("torch", reason="PyTorch, which the values come from, is not installed; the committed ones are used")
    spec = spec_from_file_location("make_golden", GOLDEN / "make_golden.py")
    script = module_from_spec(spec)
    spec.loader.exec_module(script)
    made = script.make()
    assert made.keys() == golden.keys()
    for name, array in made.items():
        rtol, atol = (1e-5, 0) if name == "losses" else (1e-9, 1e-11)       # another BLAS sums in another order
        np.testing.assert_allclose(golden[name], array, rtol, atol, err_msg=name)

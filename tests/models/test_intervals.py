"""Attention sees an interval: padding on either side and packing change no loss and no gradient, in whole models.

In float64: the same numbers are added, in other places and sometimes in another order, so that only roundings of 1e-16
times some thousand terms can differ.
"""

import numpy as np
import pytest

from minitune import models
from minitune.data import Batch
from minitune.models.head import POOLINGS

RTOL, ATOL = 1e-10, 1e-12
DOCUMENTS = [[3, 1, 4, 1, 5], [9, 2, 6], [5, 3]]
LABELS = [2, 0, 1]
WIDE = [7, 7, 7, 7, 7, 7, 7]                   # a longer row in the same batch makes the others padded


def gpt():
    model = models.GPT(models.GPTConfig(vocab_size=11, block_size=10, n_layer=2, n_head=2, n_embd=8))
    return in_float64(model)


def in_float64(model):
    """Weights large enough that every path matters; no dtype of the batch stands in the way."""
    draw = np.random.default_rng(0)
    for parameter in model.parameters():
        parameter.data = parameter.data + 0.3 * draw.standard_normal(parameter.shape)
    return model


def classifier(pooling):
    return in_float64(models.Classifier(gpt(), ["a", "b", "c"], pooling))


def losses_and_gradients(model, batches):
    """The summed loss over all batches, the number of targets, and the summed gradients."""
    model.zero_grad()
    total, count = 0.0, 0
    for batch in batches:
        (loss, number, _), = model.loss(batch).values()
        loss.backward()
        total, count = total + loss.item(), count + number
    return total, count, {name: p.grad.copy() for name, p in model.named_parameters()}


def assert_same(got, expected):
    np.testing.assert_allclose(got[0], expected[0], RTOL)
    assert got[1] == expected[1]
    for name, gradient in expected[2].items():
        np.testing.assert_allclose(got[2][name], gradient, RTOL, ATOL, err_msg=name)


def alone(documents, labels=None):
    """One batch a document: no padding anywhere."""
    return [Batch.causal([[document]], None if labels is None else [labels[i]]) for i, document in enumerate(documents)]


LAYOUTS = {
    "padded on the right": lambda: [Batch.causal([[d] for d in DOCUMENTS])],
    "padded on the left": lambda: [Batch.causal([[d] for d in DOCUMENTS], side="left")],
    "two documents packed in a row": lambda: [Batch.causal([DOCUMENTS[:2], DOCUMENTS[2:]])],
    "packed, and padded on the left": lambda: [Batch.causal([DOCUMENTS[:2], DOCUMENTS[2:]], side="left")],
    "packed the other way round": lambda: [Batch.causal([[DOCUMENTS[2], DOCUMENTS[1], DOCUMENTS[0]]])],
}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_language_models_loss_and_gradients_do_not_depend_on_the_layout(layout):
    model = gpt()
    batches = LAYOUTS[layout]()
    assert sum(batch.ids.size for batch in batches) >= 10
    assert_same(losses_and_gradients(model, batches), losses_and_gradients(model, alone(DOCUMENTS)))


@pytest.mark.parametrize("pooling", POOLINGS)
@pytest.mark.parametrize("side", ["left", "right"])
def test_a_classifiers_loss_gradients_and_logits_do_not_depend_on_padding(pooling, side):
    model = classifier(pooling)
    batch = Batch.causal([[d] for d in DOCUMENTS], LABELS, side=side)
    assert not batch.valid.all()
    assert_same(losses_and_gradients(model, [batch]), losses_and_gradients(model, alone(DOCUMENTS, LABELS)))
    logits = np.concatenate([model(one).numpy() for one in alone(DOCUMENTS, LABELS)])
    np.testing.assert_allclose(model(batch).numpy(), logits, RTOL, ATOL)


@pytest.mark.parametrize("side", ["left", "right"])
def test_float32_keeps_the_promise_to_its_own_precision(side):
    """1e-6 of the largest gradient: about ten float32 roundings of 6e-8."""
    model = gpt()
    for parameter in model.parameters():
        parameter.data = parameter.data.astype(np.float32)
    got = losses_and_gradients(model, [Batch.causal([[d] for d in DOCUMENTS], side=side)])
    expected = losses_and_gradients(model, alone(DOCUMENTS))
    np.testing.assert_allclose(got[0], expected[0], 1e-6)
    for name, gradient in expected[2].items():
        np.testing.assert_allclose(got[2][name], gradient, 1e-6, 1e-6 * max(1, np.abs(gradient).max()), err_msg=name)


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("pooling", POOLINGS)
def test_which_id_fills_the_padding_changes_not_a_bit(side, pooling):
    """Also where it is a token of the texts: padding is known by its place."""
    model = classifier(pooling)
    results = [losses_and_gradients(model, [Batch.causal([[d] for d in DOCUMENTS], LABELS, side=side, pad=pad)])
               for pad in (0, 5, 10)]
    for total, count, gradients in results[1:]:
        assert (total, count) == results[0][:2]
        for name, gradient in gradients.items():
            np.testing.assert_array_equal(gradient, results[0][2][name], err_msg=name)


def test_tokens_see_neither_padding_nor_later_tokens_nor_another_document():
    """Change one id: the features that change are those of this document, from there on."""
    model = gpt()
    batch = Batch.causal([[DOCUMENTS[0], DOCUMENTS[1]], [DOCUMENTS[2]]], side="left")
    before = model.features(batch).numpy()
    for b, t in np.ndindex(batch.ids.shape):
        changed = Batch.causal([[DOCUMENTS[0], DOCUMENTS[1]], [DOCUMENTS[2]]], side="left")
        changed.ids[b, t] = 10
        moved = (model.features(changed).numpy() != before).any(-1)
        sees = (changed.first <= t) & (t <= changed.last) & (np.arange(2) == b)[:, None]
        np.testing.assert_array_equal(moved & changed.valid, sees, err_msg=f"{b}, {t}")


def test_an_unpadded_batch_is_what_plain_ids_mean():
    model, ids = gpt(), np.array([[3, 1, 4], [1, 5, 9]])
    batch = Batch.causal([[row] for row in ids])
    np.testing.assert_array_equal(model(ids).numpy(), model(batch).numpy())
    assert_same(losses_and_gradients(model, [Batch.of_ids(ids)]), losses_and_gradients(model, [batch]))


def test_a_longer_neighbour_changes_nothing():
    model = gpt()
    batch = Batch.causal([[DOCUMENTS[0]], [WIDE]])
    both, wide = losses_and_gradients(model, [batch]), losses_and_gradients(model, [Batch.causal([[WIDE]])])
    one = losses_and_gradients(model, alone(DOCUMENTS[:1]))
    assert_same(both, (one[0] + wide[0], one[1] + wide[1], {name: g + wide[2][name] for name, g in one[2].items()}))

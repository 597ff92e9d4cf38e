"""A number that is not finite is traced to the operation that made it, and to its layer."""

import numpy as np
import pytest

import minitune as mt
from minitune import models, ops
from minitune.data import ClassificationSet
from minitune.models.head import POOLINGS
from minitune.tensor import Tensor, detect_anomaly
from minitune.train import Trainer

EIGHT = ClassificationSet([[1, 2, 3]] * 8, [0, 1] * 4, 8)


def trainer(pooling="last"):
    model = models.Classifier(models.GPT(models.GPTConfig(20, 8, 2, 2, 16, dropout=0.3)), ["no", "yes"], pooling)
    return Trainer(model, EIGHT, steps=5, lr=1e-2, progress=False)


def test_inside_detect_anomaly_the_first_operation_that_errs_is_named():
    x = Tensor([1.0, 0.0], requires_grad=True)
    with detect_anomaly(), pytest.raises(FloatingPointError, match="log, forward: made 1 of 2 .* from inputs that were finite"):
        (x * 2).log().sum()
    with detect_anomaly(), pytest.raises(FloatingPointError, match="sqrt, backward: made 1 of 2 .* were finite"):
        x.sqrt().sum().backward()
    with detect_anomaly(), pytest.raises(FloatingPointError, match="exp, forward: .* held NaN or infinity already"):
        Tensor([np.nan]).exp()
    with detect_anomaly():
        (x * 2).exp().sum().backward()
    with np.errstate(all="ignore"):
        assert not np.isfinite(x.log().numpy()).all()                       # outside, nothing is looked at


def test_attention_over_padding_is_no_anomaly():
    q = Tensor(np.ones((1, 3, 1, 4), np.float32), requires_grad=True)
    first, last = np.array([[0, 0, 1]]), np.array([[0, 1, 0]])              # the last query sees nothing
    with detect_anomaly():
        ops.attention(q, q, q, first, last).sum().backward()


def test_the_trainer_names_operation_and_layer():
    made = trainer()
    gelu = made.model.backbone.blocks[1].mlp

    def overflowing(x, residual=None):
        return gelu.down(((gelu.up(x) + 10) * 1e3).exp(), residual)

    gelu.forward = overflowing
    with np.errstate(all="ignore"), pytest.raises(FloatingPointError) as caught:
        made.fit()
    assert "It began in exp, forward" in str(caught.value) and "from inputs that were finite" in str(caught.value)
    assert "in layer 'backbone.blocks.1.mlp'" in str(caught.value) and "at step 0" in str(caught.value)


@pytest.mark.parametrize("pooling", POOLINGS)
def test_padding_that_a_pooling_leaves_out_is_no_anomaly(pooling):
    made = trainer(pooling)
    made.train = ClassificationSet([[1, 2, 3], [4]] * 4, [0, 1] * 4, 8)
    made.model.head.forward = lambda x: (x + 1e3).exp() @ np.ones((x.shape[1], 2), np.float32)
    with np.errstate(all="ignore"), pytest.raises(FloatingPointError, match="It began in exp, forward.*that were finite"):
        made.fit()


def test_the_trainer_names_weights_that_are_bad_already():
    made = trainer()
    made.model.backbone.blocks[0].mlp.up.weight.data[3, 2] = np.inf
    with np.errstate(all="ignore"), pytest.raises(FloatingPointError, match=r"already, in backbone\.blocks\.0\.mlp\.up"):
        made.fit()


def test_the_step_is_done_again_with_the_same_dropout():
    """An operation that errs only where dropout has kept an element is found again."""
    made = trainer()
    counters = []
    embed = made.model.backbone.dropout

    def watched(x):
        counters.append(dict(mt.random.counters))
        return ops.dropout(x, 0.3) * (np.nan if len(counters) in (1, 2) else 1.0)

    embed.forward = watched
    with pytest.raises(FloatingPointError, match="It began in mul, forward"):
        made.fit()
    assert len(counters) == 2 and counters[0] == counters[1]

"""The law of benchmarks/masked_language_model.py: it finds what made the losses, and predicts what follows from it."""

import numpy as np
import pytest
from masked_language_model import power_law, prediction

TOKENS = 1e6 * np.array([1, 2, 4, 8, 16])


@pytest.mark.parametrize("a, b, c", [(3.0, 40.0, 0.3), (0.0, 20.0, 0.1), (2.0, 500.0, 0.5)])
def test_a_power_law_is_found_and_predicts_the_next_loss(a, b, c):
    losses = a + b * TOKENS**-c
    np.testing.assert_allclose(power_law(TOKENS, losses), (a, b, c), rtol=1e-3, atol=1e-6)     # c lies on the grid
    found = prediction([{"tokens": t, "loss": loss} for t, loss in zip(TOKENS, losses)])
    low, high = found["range"]
    assert found["predicted"] == pytest.approx(losses[-1], abs=1e-3) and low - 1e-3 <= losses[-1] <= high + 1e-3


def test_a_loss_that_no_longer_follows_lies_outside_the_range():
    losses = 3 + 40 * TOKENS**-0.3
    losses[-1] = losses[-2]
    found = prediction([{"tokens": t, "loss": loss} for t, loss in zip(TOKENS, losses)])
    assert found["measured"] > found["range"][1]


def test_no_law_has_a_negative_floor():
    a, b, _ = power_law(TOKENS, np.array([9.0, 8.0, 6.5, 4.5, 2.0]))
    assert a == 0 and b > 0

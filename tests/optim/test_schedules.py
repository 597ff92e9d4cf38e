"""Schedules: their values at the start, at the turn and at the end, and the formula of ULMFiT."""

from math import cos, floor, pi

import pytest

from minitune.optim import SCHEDULES, constant, cosine, linear, slanted_triangular

STEPS = 100


@pytest.mark.parametrize("name", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 7, 100, 1001])
def test_every_factor_is_above_0_and_at_most_1(name, steps):
    factors = [SCHEDULES[name](step, steps) for step in range(steps)]
    assert all(0 < factor <= 1 for factor in factors)


@pytest.mark.parametrize("schedule", [constant, linear, cosine])
def test_the_rise_is_linear_over_the_first_tenth(schedule):
    assert [schedule(step, STEPS) for step in range(10)] == [(step + 1) / 11 for step in range(10)]
    assert schedule(10, STEPS) == 1
    assert schedule(0, STEPS, warmup=0) == 1


@pytest.mark.parametrize("name", [name for name in SCHEDULES if name != "constant"])
def test_after_its_turn_the_rate_only_falls(name):
    factors = [SCHEDULES[name](step, STEPS) for step in range(10, STEPS)]
    assert factors[0] == 1 and all(a > b for a, b in zip(factors, factors[1:], strict=False))


def test_constant_stays_at_1():
    assert {constant(step, STEPS) for step in range(10, 10 * STEPS)} == {1.0}


def test_linear_would_reach_0_one_step_after_the_last():
    assert linear(55, STEPS) == 0.5 and linear(99, STEPS) == 1 / 90 and linear(100, STEPS) == 0


def test_cosine_falls_to_its_lowest():
    assert cosine(55, STEPS) == pytest.approx(0.55) and cosine(100, STEPS) == pytest.approx(0.1)
    assert cosine(99, STEPS) == pytest.approx(0.1 + 0.9 * (1 + cos(pi * 89 / 90)) / 2)
    assert cosine(100, STEPS, lowest=0) == 0


@pytest.mark.parametrize("steps, cut_frac, ratio", [(100, 0.1, 32), (1000, 0.25, 10), (57, 0.1, 32)])
def test_slanted_triangular_is_the_formula_of_the_paper(steps, cut_frac, ratio):
    cut = floor(steps * cut_frac)
    for t in range(steps):
        p = t / cut if t < cut else 1 - (t - cut) / (cut * (1 / cut_frac - 1))
        assert slanted_triangular(t, steps, cut_frac, ratio) == pytest.approx((1 + max(p, 0) * (ratio - 1)) / ratio)


def test_slanted_triangular_starts_at_1_over_ratio_turns_at_1_and_never_goes_below():
    assert slanted_triangular(0, STEPS) == 1 / 32 and slanted_triangular(10, STEPS) == 1
    assert slanted_triangular(100, STEPS) == pytest.approx(1 / 32)
    assert slanted_triangular(10**6, STEPS) == 1 / 32           # training that runs on keeps the lowest rate
    assert [slanted_triangular(t, 3) for t in range(3)][0] == 1 / 32

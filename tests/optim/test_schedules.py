"""Schedules: their values at the start, at the turn and at the end, and the formula of ULMFiT."""

from fractions import Fraction
from math import cos, pi

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


def equation_3(t, T, cut_frac=Fraction(1, 10), ratio=32):
    """Howard and Ruder 2018, equation 3, in exact fractions, as it stands there."""
    cut = T * cut_frac // 1
    p = Fraction(t, cut) if t < cut else 1 - (t - cut) / (cut * (1 / cut_frac - 1))
    return (1 + p * (ratio - 1)) / ratio


ROUNDINGS = Fraction(8, 2**53)                  # in float64, relative to 1: one for each of the formula's 8 operations


@pytest.mark.parametrize("T", [10, 20, 50, 100, 250, 1000, 12340, 57, 999, 10009])
def test_slanted_triangular_is_equation_3_at_every_step(T):
    """Where 10 does not divide T, the equation ends below the lowest rate, even below 0: the rate does not."""
    lowest, after = Fraction(1, 32), T // 10 * 10
    for t in range(T):
        exact = equation_3(t, T)
        assert (exact < lowest) == (t > after)
        assert abs(Fraction(slanted_triangular(t, T)) - max(exact, lowest)) <= ROUNDINGS, t


@pytest.mark.parametrize("T, cut_frac, ratio", [(1000, Fraction(1, 4), 10), (64, Fraction(1, 2), 99), (57, Fraction(1, 8), 32)])
def test_slanted_triangular_is_equation_3_for_other_shapes(T, cut_frac, ratio):
    for t in range(T):
        exact = max(equation_3(t, T, cut_frac, ratio), Fraction(1, ratio))
        assert abs(Fraction(slanted_triangular(t, T, float(cut_frac), ratio)) - exact) <= ROUNDINGS, t


@pytest.mark.parametrize("T", [10, 57, 100, 1000])
def test_slanted_triangular_at_its_edges(T):
    """From 1/32 up to 1 at the cut, the next step already below, and from there down by equal steps."""
    cut = T // 10
    rise, fall = Fraction(31, 32 * cut), Fraction(31, 32 * 9 * cut)
    expected = {0: Fraction(1, 32), cut - 1: 1 - rise, cut: 1, cut + 1: 1 - fall, 10 * cut - 1: Fraction(1, 32) + fall,
                10 * cut: Fraction(1, 32), 10 * cut + 1: Fraction(1, 32)}
    for t, exact in expected.items():
        assert abs(Fraction(slanted_triangular(t, T)) - exact) <= ROUNDINGS, t


@pytest.mark.parametrize("T", range(1, 10))
def test_fewer_than_10_steps_have_no_cut_in_the_paper_and_rise_for_one_step(T):
    with pytest.raises(ZeroDivisionError):
        equation_3(0, T)
    assert [slanted_triangular(t, T) for t in range(2)] == [1 / 32, 1]
    for t in range(1, T):
        assert abs(Fraction(slanted_triangular(t, T)) - equation_3(t, 10)) <= ROUNDINGS, t


def test_slanted_triangular_starts_at_1_over_ratio_turns_at_1_and_never_goes_below():
    assert slanted_triangular(0, STEPS) == 1 / 32 and slanted_triangular(10, STEPS) == 1
    assert slanted_triangular(100, STEPS) == pytest.approx(1 / 32)
    assert slanted_triangular(10**6, STEPS) == 1 / 32           # training that runs on keeps the lowest rate

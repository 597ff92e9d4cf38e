"""Intervals: right in cases where the answer is known."""

import numpy as np
import pytest

from minitune.experiments.statistics import Bootstrap, interval, labels_needed


def test_the_interval_covers_the_binomial_one_for_one_seed():
    wrong = np.zeros((1, 400))
    wrong[0, :100] = 1
    low, high = interval(Bootstrap(400).errors(wrong))
    spread = 1.96 * np.sqrt(0.25 * 0.75 / 400)
    assert (low, high) == (pytest.approx(0.25 - spread, abs=0.01), pytest.approx(0.25 + spread, abs=0.01))


def test_differences_are_paired_over_texts():
    random = np.random.default_rng(0)
    hard = random.random((3, 500)) < 0.4
    easier = hard & (random.random((3, 500)) < 0.8)          # wrong only where the other is
    bootstrap = Bootstrap(500)
    paired = interval(bootstrap.errors(hard) - bootstrap.errors(easier))
    alone = [interval(bootstrap.errors(wrong)) for wrong in (hard, easier)]
    assert paired[0] > 0                                     # the difference is told apart though
    assert alone[1][1] > alone[0][0]                         # the two intervals overlap


def test_equal_methods_differ_by_exactly_nothing():
    wrong = np.random.default_rng(0).random((3, 50)) < 0.5
    bootstrap = Bootstrap(50)
    assert interval(bootstrap.errors(wrong) - bootstrap.errors(wrong)) == (0, 0)


def test_seeds_add_spread():
    wrong = np.zeros((2, 100))
    wrong[1] = 1                                             # one seed all right, one all wrong
    assert interval(Bootstrap(100).errors(wrong)) == pytest.approx((0.5 - np.sqrt(0.5), 0.5 + np.sqrt(0.5)))


@pytest.mark.parametrize("seeds", [2, 3, 5])
def test_few_seeds_spread_as_their_unbiased_standard_error_says(seeds):
    """Drawn anew and not stretched, three seeds would give 18 % less, five 11 %."""
    wrong = np.zeros((seeds, 50))
    wrong[0] = 1                                             # each seed all right or all wrong: texts add nothing
    expected = wrong.mean(1).std(ddof=1) / np.sqrt(seeds)
    drawn = Bootstrap(50).errors(wrong)
    assert drawn.std() == pytest.approx(expected, rel=0.05)  # 2,000 draws give a standard deviation to about 1.6 %
    assert drawn.mean() == pytest.approx(wrong.mean(), abs=4 * expected / np.sqrt(2000))


@pytest.mark.parametrize("error, needed", [
    (0.6, 16), (0.3, 64), (0.45, 32),                        # at the points, and half way in log(labels)
    (0.7, 0), (0.2, np.inf),                                 # above the first point, below the last
])
def test_labels_needed_reads_the_curve_in_logarithms(error, needed):
    assert labels_needed(np.array([error]), [16, 64], np.array([[0.6, 0.3]]))[0] == pytest.approx(needed)


def test_labels_needed_takes_the_first_crossing_of_a_curve_that_rises_again():
    assert labels_needed(np.array([0.45]), [16, 64, 256], np.array([[0.6, 0.3, 0.5]]))[0] == pytest.approx(32)

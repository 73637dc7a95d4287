"""Aggregates and intervals, against rliable's own numbers and by hand."""

import numpy as np
import pytest

from lightning_dqn.apps.statistics import (
    band,
    estimate,
    interquartile_mean,
    mean,
    median,
    optimality_gap,
    performance_profile,
    probability_of_improvement,
)

SCORES = np.array([[12.0, 3.5], [9.0, 4.5], [15.5, 4.0], [11.0, 2.5], [30.0, 8.0], [13.0, 3.0], [2.0, 5.5]])
OTHERS = np.array([[10.0, 3.5], [8.0, 2.0], [14.0, 4.0], [9.5, 2.25], [7.0, 5.0]])


@pytest.mark.parametrize(
    ("statistic", "scores", "expected"),
    [
        (mean, SCORES, (8.821428571428571, 6.0357142857142865, 12.071428571428571)),
        (interquartile_mean, SCORES, (7.1875, 4.625, 9.5)),
        (optimality_gap(12.0), SCORES, (4.785714285714286, 3.571428571428571, 6.393749999999995)),
        (interquartile_mean, SCORES[:, :1], (12.1, 7.6, 19.9)),
    ],
)
def test_intervals_are_those_of_rliable(statistic, scores, expected):
    # rliable 1.2.0, get_interval_estimates(..., reps=2000) after np.random.seed(0): the same draws
    found = estimate(statistic, scores, resamples=2_000, rng=np.random.RandomState)
    assert found == pytest.approx(expected, rel=1e-12)


def test_performance_profiles_are_those_of_rliable():
    thresholds = np.array([2.0, 4.0, 9.0, 14.0])
    # rliable 1.2.0, create_performance_profile(..., reps=2000) after np.random.seed(0)
    expected = [
        [0.9285714285714286, 0.6428571428571429, 0.35714285714285715, 0.14285714285714285],
        [0.7857142857142857, 0.42857142857142855, 0.21428571428571427, 0.0],
        [1.0, 0.8571428571428571, 0.5, 0.35714285714285715],
    ]
    found = band(lambda scores: performance_profile(scores, thresholds), SCORES, 2_000, np.random.RandomState)
    assert np.array(found) == pytest.approx(np.array(expected), rel=1e-12)


def test_the_probability_of_improvement_is_that_of_rliable():
    # rliable draws run by run from one and the other, so its ends differ by about one of the 70 pairs
    found = estimate(probability_of_improvement, SCORES, OTHERS, resamples=50_000)
    assert found.value == pytest.approx(0.6857142857142857, rel=1e-12)
    assert (found.low, found.high) == pytest.approx((0.44285714285714284, 0.8857142857142857), abs=0.02)


def test_a_tie_counts_half():
    # 3 beats 1, draws with 3, loses to 4; 5 beats all
    assert probability_of_improvement(np.array([[3.0], [5.0]]), np.array([[1.0], [3.0], [4.0]])) == pytest.approx(
        4.5 / 6
    )


def test_statistics_by_hand():
    scores = np.array([[1.0], [2.0], [6.0], [100.0]])
    assert (mean(scores), median(scores), interquartile_mean(scores)) == (27.25, 4.0, 4.0)
    assert optimality_gap(5.0)(scores) == (4 + 3 + 0 + 0) / 4
    assert performance_profile(scores, np.array([0.0, 1.0, 6.0])).tolist() == [1.0, 0.75, 0.25]


def test_many_samples_at_once_are_each_by_itself():
    both = np.stack([SCORES, 2 * SCORES])
    for statistic in (mean, median, interquartile_mean, optimality_gap(4.0)):
        assert statistic(both).tolist() == [statistic(SCORES), statistic(2 * SCORES)]


def test_environments_are_strata():
    # all runs of an environment agree: however they are drawn, nothing changes; drawn across both, it would
    apart = np.array([[0.0, 100.0]] * 5)
    assert estimate(mean, apart) == (50.0, 50.0, 50.0)


def test_an_interval_is_the_same_every_time_and_narrows_with_more_runs():
    few = np.random.default_rng(1).normal(size=(10, 1))
    assert estimate(mean, few) == estimate(mean, few)
    many = np.random.default_rng(1).normal(size=(1_000, 1))
    widths = [found.high - found.low for found in (estimate(mean, few), estimate(mean, many))]
    # 1.96 standard errors on either side
    assert widths[1] == pytest.approx(2 * 1.96 / 1_000**0.5, rel=0.1)
    assert widths[1] < widths[0]
    assert estimate(mean, np.array([[1.0], [2.0]])).interval() == "1.0 to 2.0"


@pytest.mark.parametrize("scores", [np.zeros(3), np.zeros((0, 1)), np.zeros((2, 0))])
def test_what_is_no_table_of_scores_is_refused(scores):
    with pytest.raises(ValueError, match=r"scores must be \[runs, environments\] and not empty, got the shape"):
        estimate(mean, scores)

"""Scores of played episodes."""

import pytest
import torch
from torch import tensor

from lightning_dqn.learner.metrics import EpisodeMetrics


def test_means_of_one_batch():
    metrics = EpisodeMetrics()
    metrics.update(tensor([0.0, 1.0, 3.0, 100.0]), tensor([10, 20, 30, 60]))

    scores = metrics.compute()

    # 104 / 4;  the middle half is 1 and 3;  120 / 4
    assert {name: value.item() for name, value in scores.items()} == {
        "return": 26.0,
        "return_iqm": 2.0,
        "episode_length": 30.0,
    }


def test_every_episode_counts_the_same_however_they_are_batched():
    metrics = EpisodeMetrics()
    metrics.update(tensor([0.0, 1.0, 3.0]), tensor([10, 20, 30]))
    metrics.update(tensor([100.0]), tensor([60]))

    # the mean of the means of the two batches would be 50.67
    assert metrics.compute()["return"].item() == 26.0
    assert metrics.compute()["return_iqm"].item() == 2.0
    assert metrics.compute()["episode_length"].item() == 30.0
    assert metrics.episodes == 4


def test_reset_forgets_all_episodes():
    metrics = EpisodeMetrics()
    metrics.update(tensor([100.0]), tensor([60]))
    metrics.reset()
    metrics.update(tensor([2.0, 4.0]), tensor([1, 3]))

    assert metrics.compute()["return"].item() == 3.0
    assert metrics.compute()["episode_length"].item() == 2.0


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.int64])
def test_scores_of_any_dtype_become_float32_scalars(dtype):
    metrics = EpisodeMetrics()
    metrics.update(tensor([1, 2], dtype=dtype), tensor([3, 4]))

    for value in metrics.compute().values():
        assert value.shape == ()
        assert value.dtype == torch.float32


def test_negative_returns():
    metrics = EpisodeMetrics()
    metrics.update(tensor([-1.0, -2.0, -6.0]), tensor([1, 1, 1]))

    assert metrics.compute()["return"].item() == -3.0


def test_the_value_of_a_forward_is_that_of_its_batch_alone():
    metrics = EpisodeMetrics()
    metrics.update(tensor([10.0]), tensor([1]))

    assert metrics(tensor([20.0]), tensor([1]))["return"].item() == 20.0
    assert metrics.compute()["return"].item() == 15.0

import math

import pytest
import torch

from lightning_dqn.experience.settings import check_capacity, check_device, check_range, choose_seed


@pytest.mark.parametrize("value", [1, 3, 5])
def test_what_is_in_range_passes(value):
    check_range(1, 5, num_envs=value)


@pytest.mark.parametrize(
    ("value", "said"),
    [(0, r"data\.num_envs must be at least 1, got 0"), (6, r"data\.num_envs must be at most 5, got 6")],
)
def test_what_is_out_of_range_is_named(value, said):
    with pytest.raises(ValueError, match=f"^{said}$"):
        check_range(1, 5, n_step=2, num_envs=value)


def test_a_range_may_have_no_end():
    check_range(0, math.inf, seed=10**30)


def test_large_limits_are_readable():
    with pytest.raises(ValueError, match="at most 1,000,000, got 1000001"):
        check_range(1, 1_000_000, gradient_steps=1_000_001)


def test_a_device_that_is_here_is_taken():
    assert check_device("cpu") == torch.device("cpu")


def test_no_device_and_a_device_that_is_not_here_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"^data\.storage_device: 'disk' is no device"):
        check_device("disk")
    with pytest.raises(ValueError, match=r"^data\.storage_device: there is no CUDA device here$"):
        check_device("cuda:0")


def test_a_buffer_must_hold_a_minibatch_and_what_arrives_at_once():
    check_capacity(8, 8, 8)
    with pytest.raises(ValueError, match=r"^data\.batch_size \(9\)"):
        check_capacity(8, 9, 8)
    with pytest.raises(ValueError, match=r"^data\.buffer\.capacity \(8\) must hold n_step \* num_envs = 9"):
        check_capacity(8, 8, 9)


def test_the_seed_is_the_one_asked_for_else_that_of_everything_else_a_new_one(monkeypatch):
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert choose_seed(0) == 0
    assert choose_seed(None) == 7
    monkeypatch.delenv("PL_GLOBAL_SEED")
    assert choose_seed(None) != choose_seed(None)

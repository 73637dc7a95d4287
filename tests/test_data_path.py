"""Every transition between the environment and the learner is right, checked against exact values of a chain.

The chain of :mod:`tests.environments` has a known value in every state, so each stored row ``(s, R, discount, s')``
must satisfy ``R + discount * V(s') == V(s)``; and every step an environment really took must start exactly one row.
"""

from collections import Counter, defaultdict

import numpy as np
import pytest

from lightning_dqn import ExperienceDataModule
from tests.environments import (
    CHAIN_LENGTH,
    CHAIN_LIMITS,
    Chain,
    ChainVector,
    FilmedChain,
    FilmedMortal,
    FilmingBuffer,
    MaskedChain,
    MaskedChainVector,
    Mortal,
    PrioritizedFilmingBuffer,
    RecordingBuffer,
    assert_masks_are_right,
    chain_episode,
    chain_limit,
    chain_observation,
    chain_steps,
    chain_value,
    legal_actions,
)

GAMMA = 0.9
NUM_ENVS = 4

ENVIRONMENTS = {
    "sync": {"env_id": Chain, "vectorization": "sync"},
    "sync, masked": {"env_id": MaskedChain, "vectorization": "sync", "action_mask": "legal"},
    "sync, masked in observations": {
        "env_id": MaskedChain,
        "vectorization": "sync",
        "action_mask": "legal",
        "env_kwargs": {"where": "observation", "at_the_end": "none"},
    },
    "native, mask honoured, masked": {
        "env_id": MaskedChainVector,
        "vectorization": "native",
        "action_mask": "legal",
        "env_kwargs": {"reuse": True},
    },
    "native, mask ignored, masked": {
        "env_id": MaskedChainVector,
        "vectorization": "native",
        "action_mask": "legal",
        "env_kwargs": {"honours_mask": False, "reuse": True},
    },
    "async, masked": {
        "env_id": MaskedChain,
        "vectorization": "async",
        "action_mask": "legal",
        "env_kwargs": {"at_the_end": "missing"},
    },
    "async": {"env_id": Chain, "vectorization": "async"},
    "sync, in pictures": {"env_id": FilmedChain, "vectorization": "sync", "buffer": FilmingBuffer},
    "sync, in pictures by priority": {
        "env_id": FilmedChain,
        "vectorization": "sync",
        "buffer": PrioritizedFilmingBuffer,
    },
    "async, in pictures": {"env_id": FilmedChain, "vectorization": "async", "buffer": FilmingBuffer},
    "native, mask honoured": {"env_id": ChainVector, "vectorization": "native"},
    "native, mask ignored": {
        "env_id": ChainVector,
        "vectorization": "native",
        "env_kwargs": {"honours_mask": False},
    },
}


def assert_rows_are_right(rows, n_step, gamma=GAMMA, limits=CHAIN_LIMITS):
    values = np.array([chain_value(t, gamma) for t in range(CHAIN_LENGTH + 1)])
    t, following = rows.observation[..., 0].astype(int), rows.next_observation[..., 0].astype(int)
    assert (chain_episode(rows.observation) == chain_episode(rows.next_observation)).all(), "two episodes in one row"
    steps = following - t
    assert ((steps >= 1) & (steps <= n_step)).all()
    limit = np.vectorize(lambda episode: chain_limit(episode, limits) or CHAIN_LENGTH)(chain_episode(rows.observation))
    # a window is shorter than n only where the episode ends
    assert ((steps == n_step) | (following == np.minimum(limit, CHAIN_LENGTH))).all()
    powers = np.array([gamma**k for k in range(n_step + 1)]).astype(np.float32)
    assert (rows.discount.astype(np.float32) == np.where(following == CHAIN_LENGTH, 0, powers[steps])).all()
    error = rows.reward.astype(np.float64) + rows.discount.astype(np.float64) * values[following] - values[t]
    assert np.abs(error).max() < 1e-5
    if rows.action_mask is not None:
        assert_masks_are_right(rows)


def started(rows):
    """``(episode, t, action)`` of the step that each row starts with."""
    columns = (chain_episode(rows.observation), rows.observation[:, 0].astype(int), rows.action)
    return Counter(zip(*(column.tolist() for column in columns), strict=True))


def expected_starts(steps, n_step, limits=CHAIN_LIMITS):
    """All steps taken but those whose windows are still open: the last ``n - 1`` of episodes that have not ended."""
    episodes = defaultdict(list)
    for episode, t, action in steps:
        episodes[episode].append((episode, t, action))
    expected = Counter()
    for episode, taken in episodes.items():
        assert [t for _, t, _ in taken] == list(range(len(taken)))
        ended = len(taken) in (CHAIN_LENGTH, chain_limit(episode, limits))
        expected.update(taken if ended else taken[: max(0, len(taken) - n_step + 1)])
    return expected


def collect(
    make_trainer,
    make_model,
    log,
    n_step,
    capacity,
    gamma=GAMMA,
    limits=CHAIN_LIMITS,
    buffer=RecordingBuffer,
    **source,
):
    """Trains for 220 environment steps; returns the buffer and the steps that were taken."""
    log.mkdir()
    source["env_kwargs"] = {"log": str(log), "limits": limits, **source.get("env_kwargs", {})}
    data = ExperienceDataModule(
        num_envs=NUM_ENVS,
        buffer=buffer(capacity),
        n_step=n_step,
        gamma=gamma,
        batch_size=5,
        train_frequency=8,
        gradient_steps=2,
        learning_starts=20,
        steps_per_epoch=100,
        seed=0,
        **source,
    )
    make_trainer(max_epochs=2, limit_val_batches=0).fit(make_model(data), data)
    return data.buffer, chain_steps(log)


def check(make_trainer, make_model, tmp_path, n_step, capacity, **source):
    buffer, steps = collect(make_trainer, make_model, tmp_path / "log", n_step, capacity, **source)
    gamma, limits = source.get("gamma", GAMMA), source.get("limits", CHAIN_LIMITS)
    assert len(steps) >= 220
    masked = "action_mask" in source
    if masked:
        episode, t, action = np.array(steps).T
        seen = np.stack([chain_observation(*step) for step in zip(t, episode, strict=True)])
        assert legal_actions(seen)[np.arange(len(steps)), action].all()
    assert len(buffer) == min(capacity, len(buffer.all_added.action))
    assert_rows_are_right(buffer.all_added, n_step, gamma, limits)
    assert len(buffer.sampled) == 26
    for batch in [buffer.all_added, *buffer.sampled]:
        assert (batch.action_mask is not None) == (batch.next_action_mask is not None) == masked
    for batch in buffer.sampled:
        assert batch.reward.shape == (2, 5)
        assert_rows_are_right(batch, n_step, gamma, limits)
    # every kind of end has been seen
    ends = {limit or CHAIN_LENGTH for limit in limits}
    assert ends <= set(buffer.all_added.next_observation[:, 0].astype(int).tolist())
    starts = started(buffer.all_added)
    assert max(starts.values()) == 1
    assert starts == expected_starts(steps, n_step, limits)


@pytest.mark.parametrize("capacity", ["smaller than an episode of each", "never full"])
@pytest.mark.parametrize("n_step", [1, 3, 5])
@pytest.mark.parametrize("source", [source for source in ENVIRONMENTS if not source.startswith("async")])
def test_every_step_starts_one_row_and_every_row_is_exact(make_trainer, make_model, tmp_path, source, n_step, capacity):
    size = 1000 if capacity == "never full" else NUM_ENVS * n_step + 1
    check(make_trainer, make_model, tmp_path, n_step, size, **ENVIRONMENTS[source])


@pytest.mark.parametrize("source", ["async", "async, masked"])
def test_every_step_in_processes_of_their_own_starts_one_row_and_every_row_is_exact(
    make_trainer, make_model, tmp_path, source
):
    check(make_trainer, make_model, tmp_path, n_step=3, capacity=13, **ENVIRONMENTS[source])


@pytest.mark.slow
@pytest.mark.parametrize("capacity", ["smaller than an episode of each", "never full"])
@pytest.mark.parametrize("n_step", [1, 3, 5])
@pytest.mark.parametrize("source", ["async", "async, masked"])
def test_every_step_in_processes_of_their_own_with_any_window(
    make_trainer, make_model, tmp_path, source, n_step, capacity
):
    size = 1000 if capacity == "never full" else NUM_ENVS * n_step + 1
    check(make_trainer, make_model, tmp_path, n_step, size, **ENVIRONMENTS[source])


@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("source", ["sync", "native, mask honoured", "native, mask ignored", "sync, masked"])
def test_a_terminal_state_that_is_also_the_last_allowed_step_is_not_bootstrapped(
    make_trainer, make_model, tmp_path, source, n_step
):
    check(make_trainer, make_model, tmp_path, n_step, 1000, limits=(CHAIN_LENGTH,), **ENVIRONMENTS[source])


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0])
def test_any_gamma_is_the_one_that_is_stored(make_trainer, make_model, tmp_path, gamma):
    check(make_trainer, make_model, tmp_path, 3, 1000, gamma=gamma, **ENVIRONMENTS["sync"])


@pytest.mark.parametrize("honours_mask", [True, False])
@pytest.mark.parametrize("n_step", [1, 3])
def test_a_native_environment_may_write_over_the_observations_it_handed_out(
    make_trainer, make_model, tmp_path, n_step, honours_mask
):
    kwargs = {"reuse": True, "honours_mask": honours_mask}
    check(
        make_trainer, make_model, tmp_path, n_step, 1000, env_id=ChainVector, vectorization="native", env_kwargs=kwargs
    )


def test_one_environment_alone(make_trainer, make_model, tmp_path):
    (tmp_path / "log").mkdir()
    buffer = RecordingBuffer(1000)
    data = ExperienceDataModule(
        Chain,
        num_envs=1,
        env_kwargs={"log": str(tmp_path / "log")},
        buffer=buffer,
        n_step=3,
        gamma=GAMMA,
        batch_size=5,
        train_frequency=1,
        learning_starts=20,
        steps_per_epoch=50,
        seed=1,
    )
    make_trainer(limit_val_batches=0).fit(make_model(data), data)
    assert_rows_are_right(buffer.all_added, 3)
    assert started(buffer.all_added) == expected_starts(chain_steps(tmp_path / "log"), 3)


MORTAL = {
    "sync": {"env_id": Mortal},
    "async": {"env_id": Mortal, "vectorization": "async"},
    "in pictures": {"env_id": FilmedMortal, "buffer": FilmingBuffer},
    "in pictures by priority": {"env_id": FilmedMortal, "buffer": PrioritizedFilmingBuffer},
}


def by_name(rows):
    """``(episode, t)`` of the step that each row starts with, and its reward, its discount and where it leads."""
    names = chain_episode(rows.observation), rows.observation[..., 0].astype(int)
    values = rows.reward, rows.discount, rows.next_observation[..., 0]
    name, value = (zip(*(column.flatten().tolist() for column in columns), strict=True) for columns in (names, values))
    return list(zip(name, value, strict=True))


@pytest.mark.parametrize(
    ("n_step", "source"),
    [
        *((1, "sync"), (3, "sync"), (5, "sync"), (3, "async")),
        *((1, "in pictures"), (3, "in pictures"), (3, "in pictures by priority")),
    ],
)
def test_a_lost_life_closes_windows_and_rewards_are_clipped_one_by_one(
    make_trainer, make_model, tmp_path, n_step, source
):
    settings = MORTAL[source] | {"life_loss": True, "reward_clip": 2.5}
    buffer, steps = collect(make_trainer, make_model, tmp_path / "log", n_step, 40, **settings)
    taken = Counter(episode for episode, _, _ in steps)

    def window(episode, t):
        """Where the window of a step ends, and whether anything is bootstrapped there; nothing if it is still open."""
        end = chain_limit(episode) or CHAIN_LENGTH
        last = min(t + n_step, end, 3 * (t // 3 + 1))
        return (last, last not in (3, 6, CHAIN_LENGTH)) if last <= taken[episode] else None

    expected = {}
    for episode, t, _ in steps:
        if (found := window(episode, t)) is not None:
            last, goes_on = found
            reward = sum(GAMMA**k * min(t + k + 1, 2.5) for k in range(last - t))
            expected[episode, t] = pytest.approx((reward, GAMMA ** (last - t) * goes_on, last))
    stored = by_name(buffer.all_added)
    assert len(dict(stored)) == len(stored) > 150
    assert expected == dict(stored)
    for batch in buffer.sampled:
        assert all(expected[name] == value for name, value in by_name(batch))

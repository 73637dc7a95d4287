"""Environments that are killed, hang or raise in the middle of a run: named, or made again."""

import multiprocessing
import time

import numpy as np
import pytest

from lightning_dqn import EpsilonGreedy, ExperienceCollector, ExperienceDataModule, LinearSchedule
from lightning_dqn.experience.faults import EnvironmentFailure
from tests.environments import RecordingBuffer
from tests.test_data_path import assert_rows_are_right, started
from tests.test_faults import FAULTS, Faulty

GAMMA = 0.9


class FaultyChain(Faulty):
    """The chain of the data-path tests, which fails in the middle of some episodes."""

    def __init__(self, fault, victims):
        from tests.environments import Chain

        super().__init__(fault, victims)
        self.chain = Chain(limits=(None,))
        self.observation_space, self.action_space = self.chain.observation_space, self.chain.action_space

    def reset(self, *, seed=None, options=None):
        self.seed, self.t = seed, 0
        return self.chain.reset(seed=seed)

    def step(self, action):
        self.t += 1
        if self.t == 4 and self.seed % self.victims == min(1, self.victims - 1):
            self.victims_of([self.seed])
        return self.chain.step(action)

    def victims_of(self, victims):
        kept, self.victims = self.victims, victims
        try:
            self.fail()
        finally:
            self.victims = kept


SAID = {"raise": "broke down with RuntimeError", "die": "died", "hang": "did not answer within"}


def run(make_trainer, make_model, vectorization, fault, n_step=3, victims=5, **kwargs):
    data = ExperienceDataModule(
        FaultyChain,
        num_envs=4,
        env_kwargs={"fault": fault, "victims": victims},
        vectorization=vectorization,
        buffer=RecordingBuffer(1000),
        n_step=n_step,
        gamma=GAMMA,
        batch_size=5,
        train_frequency=4,
        gradient_steps=1,
        learning_starts=20,
        steps_per_epoch=200,
        env_timeout=1.0 if fault == "hang" else 30.0,
        seed=0,
        **kwargs,
    )
    overlap = ExperienceCollector(EpsilonGreedy(LinearSchedule(1.0, 1.0)), overlap=n_step == 1)
    trainer = make_trainer(limit_val_batches=0, callbacks=[overlap])
    trainer.fit(make_model(data), data)
    return data


@pytest.mark.parametrize(
    ("vectorization", "fault", "n_step"),
    [
        ("sync", "raise", 1),
        ("sync", "raise", 3),
        pytest.param("async", "die", 1, marks=pytest.mark.slow),
        pytest.param("async", "raise", 3, marks=pytest.mark.slow),
        pytest.param("async", "hang", 3, marks=pytest.mark.slow),
    ],
)
def test_restarted_environments_leave_no_wrong_transition(
    make_trainer, make_model, recwarn, vectorization, fault, n_step
):
    data = run(make_trainer, make_model, vectorization, fault, n_step, on_env_error="restart")
    restarts = [str(warning.message) for warning in recwarn if "were made again" in str(warning.message)]
    assert len(restarts) >= 2
    assert all("1 of 4 began a new episode" in text for text in restarts)
    assert data.env_steps == 220
    rows = data.buffer.all_added
    assert max(started(rows).values()) == 1
    # the abandoned episodes end in nothing: their last windows are not there, and all others are exact
    assert_rows_are_right(rows, n_step, GAMMA, (None,))
    assert len(rows.action) <= 220
    assert multiprocessing.active_children() == []


def test_environments_that_always_fail_end_the_run(make_trainer, make_model):
    began = time.monotonic()
    with pytest.raises(EnvironmentFailure, match="broke down"):
        run(make_trainer, make_model, "sync", "raise", victims=1, on_env_error="restart")
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("fault", FAULTS)
def test_by_default_the_run_ends_with_an_error_and_leaves_no_process(make_trainer, make_model, fault):
    with pytest.raises(EnvironmentFailure, match=rf"^environment \d {SAID[fault]}.*episode seed \d+"):
        run(make_trainer, make_model, "async", fault)
    assert multiprocessing.active_children() == []


@pytest.mark.slow
@pytest.mark.parametrize("fault", FAULTS)
def test_a_hundred_times(make_trainer, make_model, fault):
    slowest = 0.0
    rng = np.random.default_rng()
    for _ in range(100):
        began = time.monotonic()
        with pytest.raises(EnvironmentFailure, match=rf"^environment \d {SAID[fault]}.*episode seed \d+"):
            run(make_trainer, make_model, "async", fault, victims=int(rng.integers(2, 9)))
        slowest = max(slowest, time.monotonic() - began)
        assert multiprocessing.active_children() == []
    print(f"\n{fault}: 100 of 100 named, no process left, the slowest run took {slowest:.1f} s")

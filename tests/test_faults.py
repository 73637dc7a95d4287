import os
import pickle
import signal
import time

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from lightning_dqn.experience.faults import EnvironmentFailure
from tests.environments import seeded

FAULTS = ("raise", "die", "hang")


class Faulty(gym.Env):
    """Fails in its fourth step, or when it is reset, where its seed is one of ``victims``."""

    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, fault, victims, in_reset=False):
        self.fault, self.victims, self.in_reset = fault, victims, in_reset

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed, self.t = seed, 0
        if self.in_reset:
            self.fail()
        return self.observation_space.low, {}

    def step(self, action):
        self.t += 1
        if self.t == 4 and not self.in_reset:
            self.fail()
        return self.observation_space.low, 0.0, self.t == 7, False, {}

    def fail(self):
        if self.seed not in self.victims:
            return
        if self.fault == "raise":
            raise RuntimeError("the environment broke down")
        if self.fault == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(1000)


SAID = {
    "raise": r"broke down with RuntimeError: the environment broke down; at step {} of its episode \(episode seed {}\)",
    "die": r"died at step {} of its episode \(episode seed {}\)",
    "hang": r"did not answer within 1 seconds \(data.env_timeout\) at step {} of its episode \(episode seed {}\)",
}


@pytest.mark.parametrize("victim", [0, 2])
@pytest.mark.parametrize(("vectorization", "fault"), [("sync", "raise"), *(("async", fault) for fault in FAULTS)])
def test_who_fails_is_named_with_step_and_seed_and_in_time(vectorization, fault, victim):
    envs = seeded(Faulty, 3, vectorization, fault=fault, victims=[100 + victim])
    envs.timeout = 1
    try:
        envs.reset()
        for _ in range(3):
            envs.step(np.zeros(3, np.int64))
        began = time.monotonic()
        with pytest.raises(EnvironmentFailure, match=rf"^environment {victim} " + SAID[fault].format(3, 100 + victim)):
            envs.step(np.zeros(3, np.int64))
    finally:
        envs.close()
    assert time.monotonic() - began < 6
    assert all(not process.is_alive() for process in getattr(envs.envs, "processes", []))


@pytest.mark.parametrize(("vectorization", "fault"), [("sync", "raise"), *(("async", fault) for fault in FAULTS)])
def test_so_are_those_that_fail_where_an_episode_starts(vectorization, fault):
    envs = seeded(Faulty, 3, vectorization, fault=fault, victims=[104], in_reset=True)
    envs.timeout = 1
    try:
        envs.reset()
        for _ in range(6):
            envs.step(np.zeros(3, np.int64))
        with pytest.raises(EnvironmentFailure, match=r"^environment 1 " + SAID[fault].format(0, 104)) as failed:
            envs.step(np.zeros(3, np.int64))
        assert failed.value.index == 1
    finally:
        envs.close()


@pytest.mark.parametrize("index", [None, 3])
def test_a_failure_can_be_told_to_another_process(index):
    told = pickle.loads(pickle.dumps(EnvironmentFailure("environment 3 died", index)))
    assert type(told) is EnvironmentFailure
    assert (str(told), told.index) == ("environment 3 died", index)

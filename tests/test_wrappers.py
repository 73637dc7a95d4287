import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces

from lightning_dqn import UnitObservation
from lightning_dqn.cli import DQNCLI


class Corners(gym.Env):
    """Shows the corners of its space one after the other."""

    observation_space = spaces.Box(np.array([-2, 0], np.float32), np.array([6, 0.1], np.float32))
    action_space = spaces.Discrete(2)
    shown = ([-2, 0], [6, 0.1], [2, 0.05], [0, 0.025])

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return np.array(self.shown[0], np.float32), {}

    def step(self, action):
        self.t += 1
        return np.array(self.shown[self.t], np.float32), 0.0, False, False, {}


def test_observations_are_scaled_from_their_bounds_to_one():
    env = UnitObservation(Corners())
    seen = [env.reset(seed=0)[0], *(env.step(0)[0] for _ in range(3))]

    np.testing.assert_allclose(seen, [[-1, -1], [1, 1], [0, 0], [-0.5, -0.5]], atol=1e-6)
    assert env.observation_space == spaces.Box(-1.0, 1.0, (2,), np.float32)
    assert all(observation.dtype == np.float32 for observation in seen)


@pytest.mark.parametrize(
    "space", [spaces.Box(-np.inf, 1.0, (2,)), spaces.Box(-1.0, np.inf, (2,)), spaces.Discrete(3)], ids=str
)
def test_observations_without_bounds_are_refused(space):
    env = Corners()
    env.observation_space = space
    with pytest.raises(ValueError, match=r"data\.wrappers: UnitObservation needs Box observations with bounds"):
        UnitObservation(env)


def test_a_configuration_names_it():
    cli = DQNCLI(
        ["--config=cartpole", "--data.env_id=MountainCar-v0", "--data.wrappers=[lightning_dqn.UnitObservation]"],
        run=False,
    )
    env = cli.datamodule.wrappers[0](gym.make("MountainCar-v0"))
    assert env.observation_space.low.tolist() == [-1.0, -1.0]

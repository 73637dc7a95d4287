import numpy as np
import pytest
from gymnasium.envs.classic_control.cartpole import CartPoleVectorEnv
from gymnasium.vector import AutoresetMode

from lightning_dqn.experience.envs import make_envs
from lightning_dqn.experience.reset_probe import check_resets
from tests.environments import WalkVector, seeded

WITHIN, TWICE = "resets within the step that ends an episode", "resets itself once more on the next step"
NEVER, OTHERS = "does not reset itself on the step after the end", "says that it resets_alone, but"
MODES = [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED, None]


def refused(message):
    return pytest.raises(ValueError, match=rf"^data\.vectorization: [^\n]*{message}[^\n]*; [^\n]+$")


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("starts", ["same", "random"])
@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize(("resets", "message"), [("within", WITHIN), ("twice", TWICE)])
def test_seeded_envs_native_environment_that_resets_wrong_is_refused(resets, message, num_envs, starts, mode):
    with refused(message):
        seeded(WalkVector, num_envs, "native", resets=resets, starts=starts, mode=mode)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, None])
@pytest.mark.parametrize(
    ("resets", "starts", "message"),
    [
        ("within", "same", WITHIN),
        ("within", "random", WITHIN),
        ("never", "same", NEVER),
        ("ends again", "random", NEVER),
    ],
)
def test_seeded_envs_native_environment_that_ignores_the_mask_and_resets_wrong_is_refused(
    resets, starts, message, mode
):
    with refused(message):
        seeded(WalkVector, 3, "native", resets=resets, starts=starts, mode=mode, honours_mask=False)


@pytest.mark.parametrize("says", [True, False])
def test_check_resets_environment_that_declares_otherwise_than_it_does_is_refused(says):
    envs = WalkVector(4, "next" if says else "never", honours_mask=not says, starts="same")
    envs.resets_alone = says
    with refused(OTHERS if says else NEVER):
        check_resets(envs)


@pytest.mark.parametrize("key", ["final_obs", "final_observation"])
@pytest.mark.parametrize("num_envs", [1, 3])
def test_seeded_envs_last_observation_in_info_alone_is_refused(num_envs, key):
    with refused(WITHIN):  # an episode of one step shows nothing else
        seeded(WalkVector, num_envs, "native", resets="within", lengths=(1, 1), final=key)


class CartPoleWithin(CartPoleVectorEnv):
    """Gymnasium's own, but it resets within the step, as vector environments did before 1.0."""

    def step(self, action):
        _, *rest = super().step(action)
        rows = self.prev_done.copy()
        self.state[:, rows] = self.np_random.uniform(self.low, self.high, (4, rows.sum()))
        self.steps[rows], self.prev_done[:] = 0, False
        return self.state.T.astype(np.float32), *rest


class CartPoleTwice(CartPoleVectorEnv):
    """Gymnasium's own, which honours a mask but does not forget which episodes ended."""

    def reset(self, *, seed=None, options=None):
        mask = (options or {}).pop("reset_mask", None)
        if mask is None and self.num_envs > 1:
            return super().reset(seed=seed, options=options)
        state, steps, ended = self.state, self.steps.copy(), self.prev_done.copy()
        _, info = super().reset(seed=seed if self.num_envs == 1 else max(one or 0 for one in seed))
        if state is not None:
            mask = np.ones(1, bool) if mask is None else mask
            self.state = np.where(mask, self.state, state)
            self.steps, self.prev_done = np.where(mask, 0, steps), ended
        return self.state.T.astype(np.float32), info


@pytest.mark.parametrize("num_envs", [1, 3])
@pytest.mark.parametrize(("env", "message"), [(CartPoleWithin, WITHIN), (CartPoleTwice, TWICE)])
def test_seeded_envs_cartpole_that_resets_wrong_is_refused(env, message, num_envs):
    with refused(message):
        seeded(env, num_envs, "native")


@pytest.mark.parametrize(
    ("resets", "honours_mask", "message"),
    [("within", True, WITHIN), ("twice", True, TWICE), ("within", False, WITHIN), ("never", False, NEVER)],
)
def test_step_native_environment_whose_episodes_are_longer_than_the_probe_is_refused_after_its_first_ends(
    resets, honours_mask, message
):
    lengths = (2_500, 2_500) if resets == "never" else (700, 720)
    num_envs = 6 if resets == "never" else 3
    kwargs = {"resets": resets, "honours_mask": honours_mask, "starts": "same", "lengths": lengths}
    envs = seeded(WalkVector, num_envs, "native", **kwargs)
    envs.reset()
    with refused(message):
        for _ in range(3_000):
            envs.step(np.zeros(num_envs, np.int64))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("starts", ["same", "random"])
@pytest.mark.parametrize("num_envs", [1, 3, 8])
@pytest.mark.parametrize(
    ("resets", "honours_mask"),
    [("next", True), ("next", False), ("raises", True), ("never", True), ("ends again", True)],
)
def test_step_native_environment_that_resets_right_is_not_refused(resets, honours_mask, num_envs, starts, mode):
    if not honours_mask:
        num_envs = max(num_envs, 2)  # one alone needs no mask
        mode = mode if mode != AutoresetMode.DISABLED else AutoresetMode.NEXT_STEP
    for lengths in [(1, 3), (5, 14)]:
        kwargs = {"resets": resets, "honours_mask": honours_mask, "starts": starts, "mode": mode, "lengths": lengths}
        envs = seeded(WalkVector, num_envs, "native", **kwargs)
        assert envs.resets_alone == honours_mask
        envs.reset()
        for _ in range(100):
            envs.step(np.zeros(num_envs, np.int64))


@pytest.mark.parametrize("num_envs", [1, 3, 64])
def test_check_resets_cartpole_is_complete_at_set_up(num_envs):
    envs = make_envs("CartPole-v1", num_envs, {}, (), "native")
    assert check_resets(envs).is_complete
    assert check_resets(envs) is check_resets(envs)

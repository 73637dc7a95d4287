import re
from contextlib import closing
from itertools import chain, count

import numpy as np
import pytest
from gymnasium.vector import AutoresetMode

from lightning_dqn.experience.envs import make_envs
from lightning_dqn.experience.faults import EnvironmentFailure
from lightning_dqn.experience.stepping import SeededEnvs, episode_seeds
from tests.environments import (
    CHAIN_LENGTH,
    NO_LIMIT,
    Chain,
    ChainVector,
    Faulty,
    InPlace,
    MaskedChain,
    MaskedChainVector,
    Mortal,
    Noise,
    OffsetActions,
    chain_episode,
    legal_actions,
    seeded,
    zeros,
)


def test_an_episode_that_ends_is_followed_by_a_new_one_and_leaves_its_neighbours_alone():
    envs = seeded(Chain, 3, seeds=[0, 1, 2, 4000, 5000], limits=(None, 2, 3))
    assert chain_episode(envs.reset()).tolist() == [0, 1, 2]
    step = envs.step(zeros(3))
    assert step.observation[:, 0].tolist() == step.next_observation[:, 0].tolist() == [1, 1, 1]
    assert step.done.tolist() == [False, False, False]

    step = envs.step(zeros(3))
    assert step.truncated.tolist() == [False, True, False]
    assert step.next_observation[:, 0].tolist() == [2, 2, 2]
    assert chain_episode(step.next_observation).tolist() == [0, 1, 2]
    assert step.observation[:, 0].tolist() == [2, 0, 2]
    assert chain_episode(step.observation).tolist() == [0, 4000, 2]

    step = envs.step(zeros(3))
    assert step.truncated.tolist() == [False, False, True]
    assert step.next_observation[:, 0].tolist() == [3, 1, 3]
    assert step.observation[:, 0].tolist() == [3, 1, 0]
    assert chain_episode(step.observation).tolist() == [0, 4000, 5000]
    assert envs.episode_seed.tolist() == [0, 4000, 5000]


def test_a_terminal_state_is_told_from_a_time_limit_and_wins_over_it():
    envs = seeded(Chain, 3, seeds=[0, 1, 2, 7, 3, 3, 3], length=2, limits=(None, 1, 2))
    envs.reset()
    step = envs.step(zeros(3))
    assert (step.terminated.tolist(), step.truncated.tolist()) == ([False] * 3, [False, True, False])
    step = envs.step(zeros(3))
    assert (step.terminated.tolist(), step.truncated.tolist()) == ([True, False, True], [False, True, False])
    assert (step.done == [True, True, True]).all()


SOURCES = {
    "sync": (Chain, "sync", {}),
    "async": (Chain, "async", {}),
    "native, mask honoured": (ChainVector, "native", {}),
    "native, mask ignored": (ChainVector, "native", {"honours_mask": False}),
}


@pytest.mark.parametrize("source", SOURCES)
def test_returns_and_lengths_are_those_of_the_episodes(source):
    env_id, vectorization, kwargs = SOURCES[source]
    envs = seeded(env_id, 4, vectorization, **kwargs)
    with closing(envs):
        observation, finished = envs.reset(), 0
        for _ in range(60):
            step = envs.step(zeros())
            t = step.next_observation[:, 0]
            assert step.reward.dtype == step.episode_return.dtype == np.float64
            assert (step.episode_length[step.valid] == t[step.valid]).all()
            assert (step.episode_return[step.valid] == (t * (t + 1) / 2)[step.valid]).all()
            assert (step.reward[step.valid] == t[step.valid]).all()
            assert (observation[step.valid, 0] == t[step.valid] - 1).all()
            # a step that was not taken ends nothing and shows the first observation of the next episode
            assert not step.done[~step.valid].any()
            assert (t[~step.valid] == 0).all()
            assert (step.episode_length[~step.valid] == 0).all()
            assert (step.terminated == (t == CHAIN_LENGTH)).all()
            finished += step.done.sum()
            observation = step.observation
        assert finished > 30
        assert envs.resets_alone == (source != "native, mask ignored")


@pytest.mark.parametrize("source", ["sync", "native, mask honoured"])
def test_where_members_reset_alone_every_step_is_one(source):
    env_id, vectorization, kwargs = SOURCES[source]
    envs = seeded(env_id, 4, vectorization, **kwargs)
    envs.reset()
    for _ in range(30):
        assert envs.step(zeros()).valid.all()


def test_every_episode_has_a_seed_of_its_own():
    envs, seen = seeded(Chain, 4, seeds=episode_seeds(np.random.default_rng(0)), limits=(1,)), []
    observation = envs.reset()
    for _ in range(100):
        seen += chain_episode(observation).tolist()
        observation = envs.step(zeros()).observation
    assert len(set(seen)) == 400


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_an_episode_can_be_replayed_from_its_seed_and_actions(vectorization):
    envs, random = seeded(Noise, 3, vectorization), np.random.default_rng(5)
    with closing(envs):
        observation = envs.reset()
        open_episodes = [(int(envs.episode_seed[i]), [observation[i]], [], []) for i in range(3)]
        finished = []
        for _ in range(80):
            action = random.integers(3, size=3)
            step = envs.step(action)
            for i in range(3):
                _, observations, actions, rewards = open_episodes[i]
                observations.append(step.next_observation[i])
                actions.append(int(action[i]))
                rewards.append(step.reward[i])
                if step.done[i]:
                    assert step.episode_return[i] == pytest.approx(sum(rewards))
                    finished.append(open_episodes[i])
                    open_episodes[i] = (int(envs.episode_seed[i]), [step.observation[i]], [], [])
    assert len(finished) > 20
    env = Noise()
    for seed, observations, actions, rewards in finished:
        assert (env.reset(seed=seed)[0] == observations[0]).all()
        for action, observation, reward in zip(actions, observations[1:], rewards, strict=True):
            again, reward_again, *_ = env.step(action)
            assert (again == observation).all()
            assert reward_again == reward


def test_actions_are_indices_whatever_the_start_of_the_space():
    envs = seeded(OffsetActions, 3)
    assert envs.num_actions == 3
    envs.reset()
    assert envs.step(np.array([0, 1, 2])).reward.tolist() == [-3, -2, -1]


def test_resetting_everything_starts_the_statistics_anew():
    envs = seeded(Chain, 2, **NO_LIMIT)
    envs.reset()
    envs.step(zeros(2))
    assert chain_episode(envs.reset()).tolist() == [102, 103]
    step = envs.step(zeros(2))
    assert step.episode_length.tolist() == [1, 1]
    assert step.episode_return.tolist() == [1, 1]


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_what_a_step_returned_stays_as_it_was(vectorization):
    envs = seeded(InPlace, 2, vectorization)
    with closing(envs):
        first = envs.reset()
        steps = [envs.step(zeros(2)) for _ in range(12)]
    assert first[:, 0].tolist() == [0, 0]
    assert [step.next_observation[0, 0] for step in steps] == [1, 2, 3, 4, 5] * 2 + [1, 2]
    assert [step.observation[0, 0] for step in steps] == [1, 2, 3, 4, 0] * 2 + [1, 2]
    assert [step.episode_length[0] for step in steps] == [1, 2, 3, 4, 5] * 2 + [1, 2]


@pytest.mark.parametrize("honours_mask", [True, False])
def test_what_a_native_step_returned_stays_as_it_was_though_the_environment_writes_over_it(honours_mask):
    envs = seeded(ChainVector, 2, "native", honours_mask=honours_mask, reuse=True, limits=(3,))
    first = envs.reset()
    steps = [envs.step(zeros(2)) for _ in range(4)]
    assert first[:, 0].tolist() == [0, 0]
    if honours_mask:
        assert [step.next_observation[0, 0] for step in steps] == [1, 2, 3, 1]
        assert [step.observation[0, 0] for step in steps] == [1, 2, 0, 1]
    else:
        assert [step.next_observation[0, 0] for step in steps] == [1, 2, 3, 0]


class FailsToReset(Mortal):
    """Breaks down at the reset to one seed; where it is shows in its lives and in which of its actions are legal."""

    def reset(self, *, seed=None, options=None):
        if seed == 103:
            raise OSError("cable")
        observation, info = super().reset(seed=seed, options=options)
        return observation, info | {"legal": np.array([self.t % 2 == 0, True])}

    def step(self, action):
        *outcome, info = super().step(action)
        return *outcome, info | {"legal": np.array([self.t % 2 == 0, True])}


KNOWN = "episode_seed", "episode_length", "episode_return", "action_mask", "_lives"


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_after_a_reset_that_failed_everything_is_known_as_before_the_step(vectorization):
    envs = make_envs(FailsToReset, 3, {"limits": (None, 3, 4)}, (), vectorization)
    envs = SeededEnvs(envs, count(100), mask_key="legal", life_loss=True)  # of 3, 4 and any number of steps
    with closing(envs):
        envs.reset()
        envs.step(zeros(3) + 1)
        envs.step(zeros(3) + 1)
        before = {name: getattr(envs, name).copy() for name in KNOWN}
        with pytest.raises(EnvironmentFailure, match=r"environment 0 .* at step 0 of its episode \(episode seed 103\)"):
            envs.step(zeros(3) + 1)
        assert before["episode_length"].tolist() == [2, 2, 2]
        for name in KNOWN:
            assert (getattr(envs, name) == before[name]).all(), name


# -- native environments that cannot reset their members alone ---------------------------------------------------------


def test_native_cartpole_is_found_to_reset_by_itself_and_its_reset_steps_are_no_steps():
    envs = seeded("CartPole-v1", 4, "native")
    assert not envs.resets_alone
    envs.reset()
    ended, lengths, resets = np.zeros(4, bool), np.zeros(4, int), 0
    for _ in range(200):
        step = envs.step(np.array([0, 1, 0, 1]))
        assert (step.valid == ~ended).all()
        lengths = np.where(step.valid, lengths + 1, 0)
        assert (step.episode_length == lengths).all()
        assert (step.episode_return == lengths).all()
        # a fresh state lies within .05
        assert (np.abs(step.next_observation[~step.valid]) <= 0.05).all()
        resets += (~step.valid).sum()
        ended = step.done
    assert resets > 20


def test_a_native_environment_may_be_one_alone():
    envs = seeded(ChainVector, 1, "native", limits=(3,))
    envs.reset()
    steps = [envs.step(zeros(1)) for _ in range(8)]
    taken = [step for step in steps if step.valid[0]]
    assert [step.next_observation[0, 0] for step in taken] == ([1, 2, 3] * 3)[: len(taken)]
    assert [step.episode_return[0] for step in taken] == ([1, 3, 6] * 3)[: len(taken)]


@pytest.mark.parametrize("num_envs", [1, 4])
def test_a_native_environment_that_never_resets_by_itself_is_reset(num_envs):
    envs = seeded(ChainVector, num_envs, "native", mode=AutoresetMode.DISABLED, limits=(3,))
    envs.reset()
    steps = [envs.step(zeros(num_envs)) for _ in range(8)]
    assert all(step.valid.all() for step in steps)
    assert [step.next_observation[-1, 0] for step in steps] == [1, 2, 3, 1, 2, 3, 1, 2]


# -- what learning sees ------------------------------------------------------------------------------------------------


def learning_sees(num_envs=4, seeds=None, says="always", **kwargs):
    envs = make_envs(Mortal, num_envs, {"says": says}, (), "sync")
    return SeededEnvs(envs, count(100) if seeds is None else iter(seeds), **kwargs)


def test_what_learning_sees_is_what_happened_unless_asked_otherwise():
    envs = learning_sees()
    envs.reset()
    for _ in range(20):
        step = envs.step(zeros())
        reward, terminated, truncated = step.outcome[:3]
        assert reward is step.reward
        assert (terminated == step.terminated).all()
        assert (truncated == step.truncated).all()


def test_a_lost_life_is_an_end_for_learning_and_changes_nothing_else():
    plain, asked = learning_sees(), learning_sees(life_loss=True, reward_clip=2.5)
    assert (plain.reset() == asked.reset()).all()
    lost = 0
    for _ in range(40):
        one, other = plain.step(zeros()), asked.step(zeros())
        for name in one._fields:
            if name not in ("cut", "learned_reward", "next_action_mask"):
                assert (getattr(one, name) == getattr(other, name)).all(), name
        t = other.next_observation[:, 0]
        assert (other.outcome[0] == np.minimum(t, 2.5)).all()
        assert (other.outcome[1] == (other.terminated | (t % 3 == 0))).all()
        assert (other.outcome[2] == other.truncated).all()
        lost += int((other.cut & ~other.done).sum())
    assert lost > 10


def test_negative_rewards_are_clipped_as_well():
    envs = SeededEnvs(make_envs(Noise, 4, {}), count(), reward_clip=0.1)
    envs.reset()
    rewards = [envs.step(zeros()) for _ in range(20)]
    seen, learned = np.array([step.reward for step in rewards]), np.array([step.outcome[0] for step in rewards])
    assert seen.min() < -0.1 < 0.1 < seen.max()
    assert (learned == np.where(seen > 0.1, 0.1, np.where(seen < -0.1, -0.1, seen))).all()


@pytest.mark.parametrize("says", ["when reset", "when stepped"])
def test_an_environment_that_does_not_tell_its_lives_is_refused(says):
    envs = learning_sees(says=says, life_loss=True)

    def play():
        envs.reset()
        envs.step(zeros())

    with pytest.raises(ValueError, match=r"^data\.life_loss: the environments' info has no 'lives', only \[\]"):
        play()
    learning_sees(says=says).reset()


def test_if_asked_only_the_first_episodes_are_seeded():
    envs = learning_sees(seeds=[0, 1, 2, 3], seed_every_episode=False)
    assert chain_episode(envs.reset()).tolist() == envs.episode_seed.tolist() == [0, 1, 2, 3]
    seen = {int(name) for _ in range(20) for name in chain_episode(envs.step(zeros()).observation)}
    assert seen == {0, 1, 2, 60_000}  # episode 3 is one step long
    assert envs.episode_seed.tolist() == [-1] * 4


def test_what_is_not_finite_in_an_episode_without_a_seed_is_refused_too():
    class Unseeded(Faulty):
        def reset(self, *, seed=None, options=None):
            self.at = 100 if seed is not None else 2
            return super().reset(seed=0 if seed is None else seed)

    envs = SeededEnvs(make_envs(lambda: Unseeded(limits=(3,)), 1, {}), iter([5]), seed_every_episode=False)
    envs.reset()
    message = (
        r"environment 0 returned a reward of nan that .* at step 2 of its episode \(which has no seed of its own\)"
    )
    with pytest.raises(ValueError, match=message):
        [envs.step(zeros(1)) for _ in range(6)]


# -- legal actions -----------------------------------------------------------------------------------------------------

MASKED_SOURCES = {
    "info": (MaskedChain, "sync", {}),
    "info, none at the end": (MaskedChain, "sync", {"at_the_end": "none"}),
    "info, missing at the end": (MaskedChain, "sync", {"at_the_end": "missing"}),
    "observation": (MaskedChain, "sync", {"where": "observation"}),
    "observation, none at the end": (MaskedChain, "sync", {"where": "observation", "at_the_end": "none"}),
    "async": (MaskedChain, "async", {"at_the_end": "missing"}),
    "native, mask honoured": (MaskedChainVector, "native", {"reuse": True}),
    "native, mask ignored": (MaskedChainVector, "native", {"reuse": True, "honours_mask": False}),
}


def last_legal(mask):
    return mask.shape[1] - 1 - mask[:, ::-1].argmax(axis=1)


@pytest.mark.parametrize("source", MASKED_SOURCES)
@pytest.mark.parametrize("num_envs", [1, 4])
def test_masks_are_those_of_what_is_acted_on_and_of_where_it_led(source, num_envs):
    env_id, vectorization, kwargs = MASKED_SOURCES[source]
    envs, kept, ends = seeded(env_id, num_envs, vectorization, mask_key="legal", **kwargs), [], set()
    with closing(envs):
        observation = envs.reset()
        for _ in range(60):
            expected = legal_actions(observation)
            # an environment that waits for its own reset after a terminal state takes any action
            expected |= observation[:, :1] == CHAIN_LENGTH
            assert envs.action_mask.dtype == np.bool_
            assert (envs.action_mask == expected).all()
            kept.append((envs.action_mask, expected))
            step = envs.step(last_legal(envs.action_mask))
            expected = legal_actions(step.next_observation) | step.terminated[:, None]
            assert step.next_action_mask.dtype == np.bool_
            assert (step.next_action_mask == expected).all()
            kept.append((step.next_action_mask, expected))
            observation = step.observation
            ends |= set(zip(step.terminated.tolist(), step.truncated.tolist(), strict=True))
    assert ends == {(False, False), (True, False), (False, True)}
    # and what was handed out stays as it was
    assert all((mask == expected).all() for mask, expected in kept)


def test_without_a_key_there_are_no_masks():
    envs = seeded(MaskedChain, 2)
    observation = envs.reset()
    assert envs.action_mask is None
    assert envs.step(last_legal(legal_actions(observation))).next_action_mask is None
    assert envs.action_mask is None


def test_an_episode_that_is_cut_off_from_outside_keeps_the_mask_of_its_last_state():
    envs = seeded(MaskedChain, 2, max_episode_steps=2, mask_key="legal", **NO_LIMIT)
    envs.reset()
    envs.step(last_legal(envs.action_mask))
    step = envs.step(last_legal(envs.action_mask))
    assert step.truncated.all()
    assert (step.next_action_mask == legal_actions(step.next_observation)).all()
    assert not step.next_action_mask.all()
    assert (envs.action_mask == legal_actions(step.observation)).all()


def test_masks_are_of_action_indices_whatever_the_start_of_the_space():
    envs = seeded(MaskedChain, 3, mask_key="legal", start=-2)
    observation = envs.reset()
    for _ in range(20):
        assert (envs.action_mask == legal_actions(observation)).all()
        observation = envs.step(last_legal(envs.action_mask)).observation


class Mask(Chain):
    """A chain whose mask is the same in every state but one.

    Args:
        mask: What it says.
        at: Where the odd state is.
        seed: In which episode; ``None``: in each.
        odd: What it says there; ``None``: nothing at all.
    """

    def __init__(self, mask=(1, 1), at=-1, seed=None, odd=None, **kwargs):
        super().__init__(**{"limits": (None,), **kwargs})
        self.mask, self.at, self.seed, self.odd = mask, at, seed, odd

    def say(self):
        odd = self.t == self.at and self.seed in (None, self.episode)
        mask = self.odd if odd else self.mask
        return {} if mask is None else {"legal": mask, "other": 1}

    def reset(self, **keywords):
        observation, _ = super().reset(**keywords)
        return observation, self.say()

    def step(self, action):
        *outcome, _ = super().step(action)
        return *outcome, self.say()


@pytest.mark.parametrize("vectorization", ["sync", "async"])
def test_a_state_without_a_legal_action_is_refused_with_environment_step_and_seed(vectorization):
    kwargs = {"at": 3, "seed": 22, "odd": (0, 0)}
    envs = seeded(Mask, 3, vectorization, seeds=[11, 22, 33], mask_key="legal", **kwargs)
    with closing(envs):
        envs.reset()
        envs.step(zeros(3))
        envs.step(zeros(3))
        message = r"data\.action_mask: environment 1 has no legal action at step 3 of its episode \(episode seed 22\)"
        with pytest.raises(ValueError, match=message):
            envs.step(zeros(3))


@pytest.mark.parametrize(("steps", "seed", "env"), [(0, 102, 2), (CHAIN_LENGTH, 104, 1)])
def test_a_first_state_without_a_legal_action_is_refused_too(steps, seed, env):
    envs = seeded(Mask, 3, mask_key="legal", at=0, seed=seed, odd=(False, False))
    message = rf"environment {env} has no legal action at step 0 of its episode \(episode seed {seed}\)"

    def run():
        envs.reset()
        for _ in range(steps):
            envs.step(zeros(3))

    with pytest.raises(ValueError, match=rf"^data\.action_mask: {message}"):
        run()


@pytest.mark.parametrize(("num_envs", "limits"), [(1, (None,)), (3, (None,)), (3, (None, 3))])
@pytest.mark.parametrize("odd", [(0, 0), None])
def test_a_terminal_state_needs_no_legal_action(num_envs, limits, odd):
    envs = seeded(Mask, num_envs, mask_key="legal", at=CHAIN_LENGTH, odd=odd, mask=(0, 1), limits=limits)
    envs.reset()
    for _ in range(20):
        step = envs.step(zeros(num_envs) + 1)
        expected = np.array([[False, True]]) | step.terminated[:, None]
        assert (step.next_action_mask == expected).all()
        assert (envs.action_mask == [False, True]).all()


def test_a_truncated_state_needs_a_legal_action():
    envs = seeded(Mask, 2, mask_key="legal", at=3, odd=(0, 0), limits=(3,))
    envs.reset()
    envs.step(zeros(2))
    envs.step(zeros(2))
    with pytest.raises(ValueError, match=r"^data\.action_mask: environment 0 has no legal action at step 3"):
        envs.step(zeros(2))


def test_nothing_need_be_said_where_all_have_come_to_a_terminal_state():
    envs = seeded(MaskedChainVector, 4, "native", mask_key="legal", falls_silent=True, **NO_LIMIT)
    observation = envs.reset()
    for _ in range(20):
        assert (envs.action_mask == legal_actions(observation)).all()
        step = envs.step(last_legal(envs.action_mask))
        assert (step.next_action_mask == legal_actions(step.next_observation) | step.terminated[:, None]).all()
        observation = step.observation


def test_silence_is_refused_where_some_go_on():
    envs = seeded(MaskedChainVector, 2, "native", seeds=range(9), mask_key="legal", falls_silent=True, limits=(3, None))
    envs.reset()
    for _ in range(6):
        envs.step(last_legal(envs.action_mask))
    with pytest.raises(ValueError, match=r"^data\.action_mask: the environments' info has no 'legal', only \[\]"):
        envs.step(last_legal(envs.action_mask))


@pytest.mark.parametrize("mask", [(1, 1, 1), (1,), 1])
def test_a_mask_of_another_size_is_refused(mask):
    with pytest.raises(ValueError, match=r"^data\.action_mask: .*'legal'.* is \(.*, not .*2"):
        seeded(Mask, mask_key="legal", mask=mask).reset()


@pytest.mark.parametrize("shape", [(4, 4), (4, 1), (1, 5), (4,), (5,)])
def test_a_mask_of_another_size_is_refused_in_a_native_environment(shape):
    envs = seeded(MaskedChainVector, 4, "native", mask_key="legal")
    envs.envs._info = lambda observation: {"legal": np.ones(shape)}
    says = rf"info\['legal'\] is {re.escape(str(shape))}, not \(num_envs, num_actions\) = \(4, 5\)"
    with pytest.raises(ValueError, match=rf"^data\.action_mask: {says}"):
        envs.reset()


@pytest.mark.parametrize(
    ("env_id", "vectorization"), [(Mask, "sync"), (MaskedChain, "sync"), (MaskedChainVector, "native")]
)
def test_a_key_that_the_environment_does_not_know_is_refused(env_id, vectorization):
    envs = seeded(env_id, 4, vectorization, mask_key="lawful")
    with pytest.raises(ValueError, match=r"^data\.action_mask: .*'lawful'.*'legal'"):
        envs.reset()


# -- values that are none ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vectorization", ["sync", "async"])
@pytest.mark.parametrize(("fault", "what"), [("reward", "a reward of nan"), ("observation", "an observation")])
def test_what_is_not_finite_is_refused_with_environment_step_and_seed(fault, what, vectorization):
    kwargs = {"fault": fault, "at": 3}
    envs = seeded(Faulty, 2, vectorization, seeds=[11, 22, 33, 44], **kwargs)
    with closing(envs):
        envs.reset()
        envs.step(zeros(2))
        envs.step(zeros(2))
        message = rf"environment 0 returned {what} that is not finite at step 3 of its episode \(episode seed 11\)"
        with pytest.raises(ValueError, match=message):
            envs.step(zeros(2))


def test_the_environment_that_failed_is_named():
    # episodes of 2, 3, any number of and 4 steps
    envs = seeded(Faulty, 4, seeds=chain(range(4), count(100)), fault="reward", at=5, limits=(2, 3, None, 4))
    envs.reset()
    for _ in range(4):
        envs.step(zeros())
    with pytest.raises(ValueError, match=r"environment 2 .* at step 5 of its episode \(episode seed 2\)"):
        envs.step(zeros())


def test_an_infinite_observation_after_an_end_is_refused_too():
    envs = seeded(Faulty, 1, fault="observation", at=CHAIN_LENGTH)
    envs.reset()
    for _ in range(CHAIN_LENGTH - 1):
        envs.step(zeros(1))
    with pytest.raises(ValueError, match="not finite at step 7"):
        envs.step(zeros(1))


class NotFiniteAtReset(Chain):
    """Its first observation of every episode is not a number."""

    def reset(self, **keywords):
        observation, info = super().reset(**keywords)
        return observation * np.float32(np.nan), info


def test_a_first_observation_that_is_not_finite_is_refused_too():
    with pytest.raises(ValueError, match="environment 0 returned an observation that is not finite at step 0"):
        seeded(NotFiniteAtReset, 2).reset()


class Strict(MaskedChainVector):
    """It breaks down at an illegal action."""

    def step(self, actions):
        legal = legal_actions(self._observe())[np.arange(self.num_envs), actions]
        assert (legal | self.ended).all(), "illegal"
        return super().step(actions)


@pytest.mark.parametrize("mode", [AutoresetMode.NEXT_STEP, AutoresetMode.DISABLED])
def test_whether_members_reset_alone_is_found_out_by_legal_actions(mode):
    assert seeded(Strict, 4, "native", mask_key="legal", mode=mode).resets_alone


@pytest.mark.parametrize("odd", [[], (1, 1, 1), np.array(None)])
def test_what_is_said_in_a_terminal_state_does_not_matter(odd):
    envs = seeded(Mask, 3, mask_key="legal", at=7, odd=odd, limits=(None, 3))
    envs.reset()
    for _ in range(20):
        envs.step(np.zeros(3, np.int64))


@pytest.mark.parametrize("odd", [(1,), (1, 1, 1), 1])
def test_a_mask_of_another_size_is_refused_though_those_of_the_other_environments_are_right(odd):
    envs = seeded(Mask, 3, mask_key="legal", at=3, seed=101, odd=odd)
    envs.reset()
    for _ in range(2):
        envs.step(np.zeros(3, np.int64))
    with pytest.raises(ValueError, match=r"data\.action_mask: .*legal"):
        envs.step(np.zeros(3, np.int64))

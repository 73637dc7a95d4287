"""Legal actions, from the environment to the target: where a mask comes from, and that nobody goes past it.

The mask of :class:`tests.environments.MaskedChain` is a function of the observation, so what has been stored can be
checked against what the environment must have said, and the environment breaks down at an action that is not legal.
"""

from contextlib import closing
from functools import partial

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from lightning.pytorch import Callback
from torch import tensor

from lightning_dqn import (
    Boltzmann,
    DoubleQLearning,
    EpsilonGreedy,
    ExpectedHead,
    ExperienceCollector,
    ExperienceDataModule,
    EZGreedy,
    Greedy,
    LinearSchedule,
    MunchausenQLearning,
    PrioritizedReplayBuffer,
    QLearning,
    ReplayBuffer,
    Torso,
    Transition,
)
from lightning_dqn.experience.envs import make_env
from lightning_dqn.experience.masks import ActionMask
from lightning_dqn.functional import soft_policy, squared_error
from lightning_dqn.learner.distributions import ExpectedReturn
from tests.environments import (
    MASKED_ACTIONS,
    Chain,
    Counted,
    MaskedChain,
    MaskedChainVector,
    RecordingBuffer,
    assert_masks_are_right,
    chain_steps,
    legal_actions,
)

# -- where the mask comes from -----------------------------------------------------------------------------------------


class Saying(gym.Env):
    """Says the same for ever.

    Args:
        observation: What it shows: an array, or a dictionary of arrays.
        info: What else it says.
        space: Of its observations; made to measure if not given.
        end: ``terminated``, ``truncated`` or nothing, at every step.
        later: What its steps say instead of ``info``.
    """

    action_space = spaces.Discrete(3)

    def __init__(self, observation, info=None, space=None, end=None, later=None):
        self.observation, self.info, self.end = observation, info or {}, end
        self.later = self.info if later is None else later
        box = {key: spaces.Box(0, 1, np.shape(part), np.asarray(part).dtype) for key, part in observation.items()}
        self.observation_space = space or spaces.Dict(box)

    def reset(self, *, seed=None, options=None):
        return self.observation, self.info

    def step(self, action):
        return self.observation, 1.0, self.end == "terminated", self.end == "truncated", self.later


PICTURE = np.arange(12, dtype=np.int16).reshape(3, 4)
POSITION = np.array([0.5, -1.5], np.float32)
MASKS = [
    [1, 0, 1],
    (True, False, True),
    np.array([1, 0, 1], np.int8),
    np.array([2.0, 0.0, 0.1]),
    np.array([1, 0, 1]) > 0,
]


def both(env):
    """What a reset and a step show and tell."""
    return env.reset(seed=0), env.step(0)[::4]


@pytest.mark.parametrize("mask", MASKS, ids=lambda mask: f"{type(mask).__name__}-{getattr(mask, 'dtype', '')}")
def test_a_mask_in_info_becomes_an_array_and_nothing_else_changes(mask):
    env = make_env(Saying, {"observation": {"a": POSITION}, "info": {"legal": mask, "lives": 3}}, (), "legal")
    assert env.observation_space.shape == (2,)
    for observation, info in both(env):
        assert (observation == POSITION).all()
        assert info.keys() == {"legal", "lives"}
        assert info["lives"] == 3
        assert info["legal"].dtype == np.bool_
        assert info["legal"].tolist() == [True, False, True]


@pytest.mark.parametrize("mask", MASKS[2:], ids=lambda mask: str(mask.dtype))
def test_a_mask_in_the_observations_moves_to_info(mask):
    env = ActionMask(Saying({"a": POSITION, "legal": mask, "b": PICTURE}, {"lives": 3}), "legal")
    assert env.observation_space.spaces.keys() == {"a", "b"}
    for observation, info in both(env):
        assert observation.keys() == {"a", "b"}
        assert info.keys() == {"legal", "lives"}
        assert info["legal"].dtype == np.bool_
        assert info["legal"].tolist() == [True, False, True]


def test_one_remaining_key_keeps_its_shape_and_dtype():
    env = make_env(Saying, {"observation": {"legal": np.ones(3), "picture": PICTURE}}, (), "legal")
    assert (env.observation_space.shape, env.observation_space.dtype) == ((3, 4), np.int16)
    for observation, _ in both(env):
        assert observation.dtype == np.int16
        assert (observation == PICTURE).all()


def test_one_remaining_key_that_is_discrete_becomes_one_hot():
    space = spaces.Dict(legal=spaces.MultiBinary(3), where=spaces.Discrete(4))
    kwargs = {"observation": {"legal": np.ones(3, np.int8), "where": np.int64(2)}, "space": space}
    env = make_env(Saying, kwargs, (), "legal")
    assert (env.observation_space.shape, env.observation_space.dtype) == ((4,), np.int8)
    assert [observation.tolist() for observation, _ in both(env)] == [[0, 0, 1, 0]] * 2


def test_several_remaining_keys_become_one_flat_vector():
    observation = {"b": POSITION, "legal": np.array([0.0, 0.0, 1.0]), "a": np.array([[1], [2]], np.float32)}
    env = make_env(Saying, {"observation": observation}, (), "legal")
    assert env.observation_space.shape == (4,)
    for flat, info in both(env):
        assert flat.tolist() == [1, 2, 0.5, -1.5]
        assert info["legal"].tolist() == [False, False, True]


def test_without_a_key_a_mask_is_an_observation_like_others():
    env = make_env(Saying, {"observation": {"b": POSITION, "legal": np.array([0, 0, 1.0])}})
    for observation, info in both(env):
        assert observation.tolist() == [0.5, -1.5, 0, 0, 1]
        assert info == {}


@pytest.mark.parametrize("where", ["info", "observation"])
def test_a_mask_stays_as_it_was_though_the_environment_writes_over_it(where):
    mask = np.array([True, False, True])
    said = {"a": POSITION} | ({"legal": mask} if where == "observation" else {})
    env = ActionMask(Saying(said, {"legal": mask} if where == "info" else {}), "legal")
    _, info = env.reset(seed=0)
    mask[:] = False
    assert info["legal"].tolist() == [True, False, True]
    assert "lives" not in info


def test_what_the_environment_keeps_as_its_info_is_not_written_to():
    observation, info = {"a": POSITION, "legal": np.ones(3)}, {"lives": 3}
    env = ActionMask(Saying(observation, info), "legal")
    both(env)
    assert info == {"lives": 3}
    assert observation.keys() == {"a", "legal"}


def test_a_wrapper_of_the_user_may_be_what_says_it():
    class Telling(gym.Wrapper):
        def reset(self, **keywords):
            observation, info = super().reset(**keywords)
            return observation, info | {"legal": [0, 1, 0]}

    env = make_env(Saying, {"observation": {"a": POSITION}}, [Telling], "legal")
    assert env.reset(seed=0)[1]["legal"].tolist() == [False, True, False]


@pytest.mark.parametrize("where", ["info", "observation"])
def test_arguments_of_a_reset_reach_the_environment(where):
    env = ActionMask(MaskedChain(where=where), "legal")
    observation, _ = env.reset(seed=70_000, options={"any": 1})
    assert observation.tolist() == [0, 1, 70_000 - 65_536]


# -- masks that are none -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(2,), (4,), (1, 3), ()])
def test_an_observation_key_that_is_no_mask_is_refused_and_the_environment_closed(shape):
    class Closing(Counted):
        observation_space = spaces.Dict(legal=spaces.Box(0, 1, shape), a=Chain.observation_space)
        action_space = spaces.Discrete(3)

    before = Counted.made - Counted.closed
    with pytest.raises(ValueError, match=r"^data\.action_mask: observation key 'legal' has shape .* 3 actions"):
        make_env(Closing, {}, (), "legal")
    assert Counted.made - Counted.closed == before


def test_observations_that_are_nothing_but_a_mask_are_refused():
    with pytest.raises(ValueError, match=r"^data\.action_mask: without 'legal' the observations are empty"):
        make_env(Saying, {"observation": {"legal": np.ones(3)}}, (), "legal")


def test_a_mask_that_is_nowhere_is_refused_and_what_there_is_named():
    env = make_env(Saying, {"observation": {"a": POSITION}, "info": {"lives": 3, "ago": 1}}, (), "legal")
    with pytest.raises(ValueError, match=r"^data\.action_mask: 'legal' is neither .* which has \['ago', 'lives'\]$"):
        env.reset(seed=0)


@pytest.mark.parametrize("end", [None, "truncated"])
def test_a_mask_that_is_missing_where_an_action_may_follow_is_refused(end):
    env = ActionMask(Saying({"a": POSITION}, {"legal": [1, 1, 1]}, end=end, later={"lives": 3}), "legal")
    env.reset(seed=0)
    with pytest.raises(ValueError, match=r"^data\.action_mask: 'legal' is neither .*lives"):
        env.step(0)


def test_a_mask_may_be_missing_in_a_terminal_state():
    env = ActionMask(Saying({"a": POSITION}, {"legal": [1, 1, 1]}, end="terminated", later={"lives": 0}), "legal")
    env.reset(seed=0)
    assert env.step(0)[4] == {"lives": 0}


# -- the data module ---------------------------------------------------------------------------------------------------


def make_data(env_id=MaskedChain, **kwargs):
    """A run of 40 random steps, then 80 an epoch."""
    defaults = {
        "num_envs": 2,
        "action_mask": "legal",
        "buffer": RecordingBuffer(30),
        "batch_size": 8,
        "train_frequency": 8,
        "gradient_steps": 2,
        "learning_starts": 40,
        "steps_per_epoch": 80,
        "eval_episodes": 5,
        "eval_num_envs": 3,
        "seed": 0,
    }
    return ExperienceDataModule(env_id, **(defaults | kwargs))


@pytest.mark.parametrize("where", ["info", "observation", "observations"])
def test_the_network_is_made_for_what_remains(where):
    data = make_data(env_kwargs={"where": where})
    assert data.observation_shape == ((4,) if where == "observations" else (3,))
    assert data.num_actions == MASKED_ACTIONS


@pytest.mark.parametrize("buffer", [ReplayBuffer, PrioritizedReplayBuffer])
@pytest.mark.parametrize(("env_id", "vectorization"), [(MaskedChain, "sync"), (MaskedChainVector, "native")])
def test_masks_are_stored_if_they_are_used(env_id, vectorization, buffer):
    data = make_data(env_id, vectorization=vectorization, buffer=buffer(30))
    envs = data.open()
    with closing(data):
        envs.reset()
        assert envs.action_mask.shape == (2, 5)
        assert [(mask.shape, mask.dtype) for mask in data.buffer.storage[5:]] == [((30, 5), torch.bool)] * 2
        assert {"action_mask", "next_action_mask"} <= data.buffer.state_arrays().keys()


@pytest.mark.parametrize("buffer", [ReplayBuffer, PrioritizedReplayBuffer])
@pytest.mark.parametrize(("env_id", "vectorization"), [(MaskedChain, "sync"), (MaskedChainVector, "native")])
def test_masks_that_nobody_asked_for_are_not_stored(env_id, vectorization, buffer):
    data = make_data(env_id, vectorization=vectorization, action_mask=None, buffer=buffer(30))
    envs = data.open()
    with closing(data):
        envs.reset()
        assert envs.action_mask is None
        assert data.buffer.storage[5:] == (None, None)
        assert not {"action_mask", "next_action_mask"} & data.buffer.state_arrays().keys()


def test_the_key_is_kept_with_the_hyper_parameters():
    assert make_data().hparams["action_mask"] == "legal"
    assert ExperienceDataModule("CartPole-v1").hparams["action_mask"] is None


def test_a_key_that_is_unknown_ends_a_fit_with_its_name(make_trainer, make_model):
    data = make_data(action_mask="lawful")
    with pytest.raises(ValueError, match=r"^data\.action_mask: 'lawful' is neither"):
        make_trainer(limit_val_batches=0).fit(make_model(data), data)


# -- whole runs --------------------------------------------------------------------------------------------------------

EXPLORERS = {
    "epsilon": partial(EpsilonGreedy, LinearSchedule(1.0, 0.1, 100)),
    "sticky": partial(EZGreedy, LinearSchedule(0.5, 0.5), 1.5),
    "greedy": Greedy,
    "boltzmann": Boltzmann,
}


def prefers_the_last(num_features, num_actions):
    """A head that likes each action better than the one before it by far, so that the best is often illegal."""
    head = ExpectedHead(num_features, num_actions, loss=squared_error)
    with torch.no_grad():
        head.stream.layers[-1].bias.copy_(100 * torch.arange(num_actions))
    return head


@pytest.mark.parametrize(
    ("where", "n_step", "explorer"),
    [
        *[(where, n_step, "epsilon") for where in ("info", "observation", "observations") for n_step in (1, 3)],
        *[("info", 3, explorer) for explorer in ("sticky", "greedy", "boltzmann")],
    ],
)
def test_no_action_of_training_or_evaluation_is_illegal_and_every_mask_stored_is_what_was_said(
    make_trainer, make_model, where, n_step, explorer
):
    data = make_data(n_step=n_step, env_kwargs={"where": where, "at_the_end": "none", "start": 1})
    model = make_model(data, head=prefers_the_last)
    trainer = make_trainer(max_epochs=2, callbacks=[ExperienceCollector(EXPLORERS[explorer]())])
    trainer.fit(model, data)
    assert model.gradient_steps == 40
    rows = data.buffer.all_added
    assert len(rows.action) > 5 * data.buffer.capacity
    assert len(data.buffer.sampled) == 20
    for stored in [rows, *data.buffer.sampled]:
        # of several observations the position is the first
        position = stored._replace(
            observation=stored.observation[..., :3], next_observation=stored.next_observation[..., :3]
        )
        assert_masks_are_right(position)
    (scores,) = trainer.test(model, data, verbose=False)
    assert scores["test/episode_length"] > 1
    assert sum(len(batch) for batch in trainer.predict(model, data)) == 5


@pytest.mark.parametrize("n_step", [1, 3])
def test_no_action_is_illegal_where_every_environment_has_its_own_process(make_trainer, make_model, n_step):
    data = make_data(n_step=n_step, vectorization="async", env_kwargs={"at_the_end": "missing"})
    trainer = make_trainer(callbacks=[ExperienceCollector(EpsilonGreedy(LinearSchedule(0.5, 0.5)))])
    trainer.fit(make_model(data), data)
    assert np.isfinite(trainer.callback_metrics["val/return"].item())
    for rows in [data.buffer.all_added, *data.buffer.sampled]:
        assert_masks_are_right(rows)


@pytest.mark.parametrize("honours_mask", [True, False])
def test_no_action_of_a_native_environment_is_illegal(make_trainer, make_model, tmp_path, honours_mask):
    """In evaluation too: every environment writes down what was done in it, and which state that was."""
    log = tmp_path / "log"
    log.mkdir()
    kwargs = {"honours_mask": honours_mask, "reuse": True, "log": str(log)}
    data = make_data(MaskedChainVector, vectorization="native", env_kwargs=kwargs, n_step=3, eval_num_envs=5)
    model, trainer = make_model(data, head=prefers_the_last), make_trainer(limit_val_batches=0)
    trainer.fit(model, data)
    training = chain_steps(log)
    for path in log.iterdir():
        path.unlink()
    trainer.test(model, data, verbose=False)
    for steps in (training, chain_steps(log)):
        episode, t, action = np.array(steps).T
        position = np.stack([t, episode >> 16, episode & 0xFFFF], axis=1)
        assert len(steps) > 10
        assert legal_actions(position)[np.arange(len(steps)), action].all()
    for rows in [data.buffer.all_added, *data.buffer.sampled]:
        assert_masks_are_right(rows)


def test_actions_before_learning_are_uniform_over_the_legal_ones(make_trainer, make_model):
    data = make_data(num_envs=4, learning_starts=6_000, steps_per_epoch=6_000, train_frequency=6_000)
    make_trainer(limit_val_batches=0).fit(make_model(data), data)
    rows = data.buffer.all_added
    mask, action = rows.action_mask[:6_000], rows.action[:6_000]
    chi2 = degrees = 0
    for code in range(1, 2**MASKED_ACTIONS):
        legal = (code >> np.arange(MASKED_ACTIONS)) % 2 == 1
        counts = np.bincount(action[(mask == legal).all(axis=1)], minlength=MASKED_ACTIONS)
        expected = counts.sum() / legal.sum()
        assert expected > 20
        assert counts[~legal].sum() == 0
        chi2 += ((counts[legal] - expected) ** 2 / expected).sum()
        degrees += legal.sum() - 1
    assert degrees == 49
    assert abs(chi2 - degrees) < 3.5 * np.sqrt(2 * degrees)


class AllLegal(Chain):
    """A chain that says of every action that it is legal."""

    def reset(self, **keywords):
        return super().reset(**keywords)[0], {"legal": [1, 1]}

    def step(self, action):
        *outcome, _ = super().step(action)
        return *outcome, {"legal": [1, 1]}


@pytest.mark.parametrize(
    ("rule", "explorer"),
    [
        *[(rule, "epsilon") for rule in (QLearning(), DoubleQLearning(), MunchausenQLearning())],
        *[(DoubleQLearning(), explorer) for explorer in ("sticky", "greedy", "boltzmann")],
    ],
)
def test_if_everything_is_legal_a_run_is_the_one_without_masks(make_trainer, make_model, rule, explorer):
    models = []
    for key in ("legal", None):
        data = make_data(AllLegal, action_mask=key, n_step=3)
        models.append(make_model(data, target_rule=rule))
        collector = ExperienceCollector(EXPLORERS[explorer]())
        make_trainer(limit_val_batches=0, callbacks=[collector]).fit(models[-1], data)
    masked, unmasked = (model.state_dict() for model in models)
    assert all(torch.equal(masked[name], unmasked[name]) for name in masked)


class TwoStates(gym.Env):
    """Two steps; what pays most is never to be had, and the best of what is legal pays 1."""

    observation_space = spaces.Box(0, 1, (2,), np.float32)
    action_space = spaces.Discrete(3)
    masks = np.array([[False, True, True], [True, True, False]])

    def reset(self, *, seed=None, options=None):
        self.state = 0
        return self.say()

    def step(self, action):
        assert self.masks[self.state][action]
        reward = [[9.0, 1.0, 0.0], [0.0, 1.0, 9.0]][self.state][action]
        self.state += 1
        terminated = self.state == 2
        self.state %= 2
        return *self.say()[:1], reward, terminated, False, {} if terminated else self.say()[1]

    def say(self):
        return np.eye(2, dtype=np.float32)[self.state], {"legal": self.masks[self.state]}


class AsItIs(Torso):
    """Observations are their own features: with a linear head of one-hot states that is a table of values."""

    def __init__(self, observation_shape):
        super().__init__()
        (self.num_features,) = observation_shape

    def forward(self, observation):
        return observation


@pytest.mark.parametrize("rule", [QLearning(), DoubleQLearning(), MunchausenQLearning(0.01, 0.0)])
def test_the_values_learned_are_those_of_a_world_without_illegal_actions(make_trainer, make_model, rule):
    data = make_data(TwoStates, buffer=ReplayBuffer(400), gamma=0.5, gradient_steps=16, steps_per_epoch=400)
    model = make_model(
        data,
        target_rule=rule,
        head=prefers_the_last,
        torso=AsItIs,
        optimizer=partial(torch.optim.SGD, lr=0.3),
        target_update_rate=1.0,
    )
    trainer = make_trainer(callbacks=[ExperienceCollector(EpsilonGreedy(LinearSchedule(1.0, 1.0)))])
    trainer.fit(model, data)
    with torch.no_grad():
        q_values = model(torch.eye(2)).numpy()
    # the best legal action of the second state is worth 1, so that of the first 1 + 0.5 * 1
    np.testing.assert_allclose(q_values[0, 1:], [1.5, 0.5], atol=0.02)
    np.testing.assert_allclose(q_values[1, :2], [0.0, 1.0], atol=0.02)
    assert q_values[1, 2] > 100  # nobody has tried it, and nobody was tempted
    assert trainer.callback_metrics["val/return"].item() == 2.0


def test_taxi_says_in_info_what_is_legal_and_it_is_done(make_trainer, make_model):
    seen = []

    class Look(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append(batch.transition)

    data = make_data(
        "Taxi-v4", action_mask="action_mask", buffer=ReplayBuffer(300), learning_starts=100, steps_per_epoch=200
    )
    trainer = make_trainer(callbacks=[Look()])
    trainer.fit(make_model(data), data)
    assert (data.observation_shape, data.num_actions) == ((500,), 6)
    taxi = gym.make("Taxi-v4").unwrapped
    legal = torch.from_numpy(np.stack([taxi.action_mask(state) for state in range(500)])).bool()
    assert len(seen) == 25
    for rows in seen:
        assert torch.equal(rows.action_mask, legal[rows.observation.argmax(-1)])
        assert torch.equal(
            rows.next_action_mask, legal[rows.next_observation.argmax(-1)] | (rows.discount == 0)[..., None]
        )
        assert rows.action_mask.gather(-1, rows.action[..., None]).all()
        assert not rows.action_mask.all()
    assert np.isfinite(trainer.callback_metrics["val/return"].item())


# -- targets -----------------------------------------------------------------------------------------------------------

RULES = [QLearning(), DoubleQLearning(), MunchausenQLearning(0.5, 0.7, -2.0), MunchausenQLearning(0.03, 0.0)]


def case(rows=64, num_actions=5, seed=0, terminal=0.0):
    """Random transitions with masks, and the values of two networks at both ends, as functions of the rows."""
    random = np.random.default_rng(seed)
    masks = random.random((2, rows, num_actions)) < 0.5
    masks[:, np.arange(rows), random.integers(num_actions, size=rows)] = True
    action = np.array([random.choice(np.flatnonzero(mask)) for mask in masks[0]])
    # the row number is all there is to observe: the present is at n, what follows at n + rows
    transition = Transition(
        torch.arange(rows),
        torch.from_numpy(action),
        torch.from_numpy(random.normal(size=rows)),
        torch.from_numpy(np.where(random.random(rows) < terminal, 0.0, 0.9)),
        torch.arange(rows) + rows,
        *torch.from_numpy(masks),
    )
    return transition, *random.normal(size=(2, 2 * rows, num_actions))


def with_illegal_actions_worth(value, values, transition):
    legal = np.concatenate([transition.action_mask, transition.next_action_mask])
    return np.where(legal, values, value)


def network(values):
    return lambda observation: ExpectedReturn(torch.from_numpy(values)[observation])


def by_hand(rule, transition, online, target):
    """Row by row, over the legal actions and no others."""
    results = []
    for n in range(len(transition.action)):
        now, then = (np.flatnonzero(mask[n]) for mask in transition[5:])
        reward, discount, following = (
            float(transition.reward[n]), float(transition.discount[n]), int(transition.next_observation[n])
        )  # fmt: skip
        if isinstance(rule, QLearning):
            value = max(target[following][a] for a in then)
        elif isinstance(rule, DoubleQLearning):
            value = target[following][max(then, key=online[following].__getitem__)]
        else:
            tau = rule.temperature
            present, future = target[n][now] / tau, target[following][then] / tau
            log_now = present - present.max() - np.log(np.exp(present - present.max()).sum())
            log_then = future - future.max() - np.log(np.exp(future - future.max()).sum())
            chosen = log_now[list(now).index(int(transition.action[n]))]
            reward += rule.alpha * np.clip(tau * chosen, rule.log_policy_min, 0)
            value = (np.exp(log_then) * (target[following][then] - tau * log_then)).sum()
        results.append(reward + discount * value)
    return np.array(results)


@pytest.mark.parametrize("worth", [-1e9, 0.0, 1e9, np.inf])
@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_targets_are_those_over_legal_actions_whatever_the_others_are_worth(rule, worth):
    if worth == np.inf and isinstance(rule, MunchausenQLearning):
        worth = 1e30  # a mean over actions weights what is not chosen with zero
    transition, online, target = case(terminal=0.2)
    online, target = (with_illegal_actions_worth(worth, values, transition) for values in (online, target))
    got = rule(transition, network(online), network(target)).q_values
    assert got.isfinite().all()
    np.testing.assert_allclose(got.numpy(), by_hand(rule, transition, online, target), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_what_illegal_actions_are_worth_changes_no_target(rule):
    transition, online, target = case(seed=1)
    targets = [
        rule(
            transition,
            network(with_illegal_actions_worth(worth, online, transition)),
            network(with_illegal_actions_worth(worth, target, transition)),
        ).q_values
        for worth in (-1e6, 3.0, 1e6)
    ]
    assert all(torch.equal(targets[0], other) for other in targets[1:])


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_a_mask_of_ones_and_no_mask_give_the_same_targets(rule):
    transition, online, target = case(seed=2)
    ones = torch.ones(64, 5, dtype=torch.bool)
    with_masks, without = transition._replace(action_mask=ones, next_action_mask=ones), Transition(*transition[:5])
    targets = [rule(rows, network(online), network(target)).q_values for rows in (with_masks, without)]
    assert torch.equal(*targets)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_masks_are_asked_at_the_end_they_belong_to(rule):
    transition, online, target = case(seed=3)
    swapped = transition._replace(
        action_mask=transition.action_mask.flip(0) | transition.next_action_mask,
        next_action_mask=transition.next_action_mask,
    )
    one, other = (rule(rows, network(online), network(target)).q_values for rows in (transition, swapped))
    # which actions were legal before matters to the log-policy alone
    assert torch.equal(one, other) == (not isinstance(rule, MunchausenQLearning) or rule.alpha == 0)
    crossed = transition._replace(next_action_mask=transition.action_mask)
    assert not torch.equal(one, rule(crossed, network(online), network(target)).q_values)


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: type(rule).__name__)
def test_the_target_of_a_terminal_state_is_the_reward_whatever_its_mask(rule):
    transition, online, target = case(seed=4, terminal=1.0)
    expected = by_hand(rule, transition, online, target)
    if not isinstance(rule, MunchausenQLearning) or rule.alpha == 0:
        assert (expected == transition.reward.numpy()).all()
    everything = torch.ones_like(transition.next_action_mask)
    for mask in (transition.next_action_mask, transition.next_action_mask.roll(1, 1), everything):
        got = rule(transition._replace(next_action_mask=mask), network(online), network(target)).q_values
        np.testing.assert_allclose(got.numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("rule", [QLearning(), DoubleQLearning()])
def test_a_terminal_state_may_even_have_no_legal_action(rule):
    transition, online, target = case(seed=4, terminal=1.0)
    nothing = torch.zeros_like(transition.next_action_mask)
    got = rule(transition._replace(next_action_mask=nothing), network(online), network(target)).q_values
    assert torch.equal(got, transition.reward)


def test_a_policy_shares_itself_out_among_legal_actions_and_its_log_adds_up():
    q_values = tensor([[1.0, -torch.inf, 2.0], [-torch.inf, -torch.inf, -3.0]], dtype=torch.float64)
    policy, log_policy = soft_policy(q_values, 0.5)
    share = 1 / (1 + np.exp(-2))
    torch.testing.assert_close(policy, tensor([[1 - share, 0, share], [0, 0, 1]], dtype=torch.float64))
    expected = [[0.5 * np.log(1 - share), -np.inf, 0.5 * np.log(share)], [-np.inf, -np.inf, 0.0]]
    torch.testing.assert_close(log_policy, tensor(expected, dtype=torch.float64))


def test_of_two_legal_actions_alike_munchausen_adds_the_logarithm_of_a_half_and_not_of_a_fifth():
    mask = tensor([[True, False, False, True, False]])
    values = np.full((2, 5), 3.0)
    transition = Transition(tensor([0]), tensor([3]), tensor([1.0]), tensor([0.5]), tensor([1]), mask, mask.roll(1, 1))
    rule = MunchausenQLearning(temperature=1.0, alpha=1.0, log_policy_min=-10.0)
    got = rule(transition, network(values), network(values)).q_values.item()
    # the entropy of two actions comes with what follows
    assert got == pytest.approx(1 + np.log(0.5) + 0.5 * (3 + np.log(2)))


def test_a_remaining_key_may_have_an_empty_name():
    class Nameless(gym.Env):
        observation_space = spaces.Dict({"": spaces.Box(0, 1, (2, 2), np.float32), "legal": spaces.MultiBinary(2)})
        action_space = spaces.Discrete(2)

    assert make_env(Nameless, {}, (), "legal").observation_space.shape == (2, 2)

"""Small environments whose right answers are known, and a buffer that remembers everything.

They stand in a module of their own so that the worker processes of asynchronous environments can import them.
"""

import os
import signal
from itertools import count
from pathlib import Path

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space

from lightning_dqn import PrioritizedReplayBuffer, ReplayBuffer, SharedFrames, Transition
from lightning_dqn.experience.envs import make_envs
from lightning_dqn.experience.stepping import SeededEnvs

CHAIN_LENGTH = 7
CHAIN_LIMITS = (None, 4, 5, 1)
NO_LIMIT = {"limits": (None,)}


def seeded(env_id, num_envs=4, vectorization="sync", seeds=None, max_episode_steps=None, mask_key=None, **kwargs):
    """Copies of an environment, with the seeds 100, 101, ... unless others are given."""
    envs = make_envs(env_id, num_envs, kwargs, (), vectorization, mask_key)
    return SeededEnvs(envs, count(100) if seeds is None else iter(seeds), max_episode_steps, mask_key)


def zeros(num_envs=4):
    """The first action everywhere."""
    return np.zeros(num_envs, np.int64)


def chain_value(t, gamma, length=CHAIN_LENGTH):
    """The exact value of a state of the chain: rewards ``t + 1, t + 2, ... length``."""
    return float(sum(gamma**k * (t + k + 1) for k in range(length - int(t))))


def chain_observation(t, episode):
    """The position, and which episode it is, in two numbers that float32 holds exactly."""
    return np.array([t, episode >> 16, episode & 0xFFFF], np.float32)


def chain_episode(observations):
    """Which episode each observation ``[..., 3]`` is from."""
    return (np.asarray(observations)[..., 1].astype(np.int64) << 16) + np.asarray(observations)[..., 2].astype(np.int64)


def chain_limit(episode, limits=CHAIN_LIMITS):
    """After how many steps an episode is cut off."""
    return limits[int(episode) % len(limits)]


class Chain(gym.Env):
    """Walks from 0 to ``length`` whatever the action; step ``t`` is rewarded with ``t + 1``.

    The end at ``length`` is terminal; before it an episode may be cut off after a number of steps that depends on its
    seed, which is also the name of the episode. Every step taken is written to a file in ``log``.
    """

    observation_space = spaces.Box(0, 2**16, (3,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, length=CHAIN_LENGTH, limits=CHAIN_LIMITS, log=None):
        self.length, self.limits = length, limits
        self.log = _open_log(log, self)

    def reset(self, *, seed=None, options=None):
        assert seed is not None, "every episode has a seed of its own"
        assert options is None or "reset_mask" not in options
        super().reset(seed=seed)
        self.t, self.episode = 0, seed
        return chain_observation(0, self.episode), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        _write(self.log, self.episode, self.t, action)
        self.t += 1
        limit = chain_limit(self.episode, self.limits)
        truncated = limit is not None and self.t >= limit
        return chain_observation(self.t, self.episode), float(self.t), self.t == self.length, truncated, {}

    def close(self):
        if self.log is not None:
            self.log.close()


class FilmedChain(gym.Wrapper):
    """The chain in pictures: ``(2, 1, 9)``, the one before and this one; black before the first.

    A picture has the three numbers of the chain in three bytes each.
    """

    observation_space = spaces.Box(0, 255, (2, 1, 9), np.uint8)

    def __init__(self, **kwargs):
        super().__init__(Chain(**kwargs))

    def reset(self, *, seed=None, options=None):
        observation, info = self.env.reset(seed=seed, options=options)
        self.picture = _picture(observation)
        return np.stack([np.zeros_like(self.picture), self.picture]), info

    def step(self, action):
        observation, *rest = self.env.step(action)
        before, self.picture = self.picture, _picture(observation)
        return np.stack([before, self.picture]), *rest

    @staticmethod
    def read(stacks):
        """Chain observations of the newest pictures, ``[..., 3]``, once it is clear that the others belong there."""
        before, now = np.moveaxis(np.asarray(stacks)[..., 0, :].astype(np.int64), -2, 0)
        before, now = (picture.reshape(*picture.shape[:-1], 3, 3) @ (1, 256, 65536) for picture in (before, now))
        first = now[..., 0] == 0
        assert (before[first] == 0).all()
        assert (before[~first] == now[~first] - (1, 0, 0)).all()
        return now.astype(np.float32)


def _picture(observation):
    return np.array([[int(number) >> 8 * byte & 255 for number in observation for byte in range(3)]], np.uint8)


class ChainVector(VectorEnv):
    """The chain as a native vector environment that resets itself on the step after the end.

    Args:
        honours_mask: Whether it can reset some of its members alone; if not, a masked reset resets them all, silently.
        reuse: Whether it hands out one and the same array of observations, written over at every step.
        anonymous: Whether observations say where an environment is and nothing else.
        mode: What it says about its resets; without them (``DISABLED``) it must not be stepped after an end.
    """

    single_observation_space = Chain.observation_space
    single_action_space = Chain.action_space

    def __init__(
        self,
        num_envs=4,
        length=CHAIN_LENGTH,
        limits=CHAIN_LIMITS,
        log=None,
        honours_mask=True,
        reuse=False,
        anonymous=False,
        mode=AutoresetMode.NEXT_STEP,
    ):
        self.num_envs, self.length, self.limits = num_envs, length, limits
        self.honours_mask, self.reuse, self.anonymous = honours_mask, reuse, anonymous
        self.metadata = {"autoreset_mode": mode}
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.log = _open_log(log, self)
        self.t = np.zeros(num_envs, np.int64)
        self.episode = np.zeros(num_envs, np.int64)
        self.ended = np.zeros(num_envs, bool)
        self.count = 0
        self._observation = np.zeros((num_envs, 3), np.float32)

    def reset(self, *, seed=None, options=None):
        mask = (options or {}).get("reset_mask")
        if mask is None or not self.honours_mask:
            mask = np.ones(self.num_envs, bool)
            _write(self.log, "reset")
        for i in np.flatnonzero(mask):
            self._start(i, seed[i] if self.honours_mask and isinstance(seed, list) else None)
        return self._observe(), {}

    def step(self, actions):
        assert self.action_space.contains(actions), actions
        reward = np.zeros(self.num_envs, np.float32)
        terminated, truncated = np.zeros(self.num_envs, bool), np.zeros(self.num_envs, bool)
        for i in range(self.num_envs):
            if self.ended[i]:
                assert self.metadata["autoreset_mode"] != AutoresetMode.DISABLED, "stepped after its end"
                self._start(i, None)
                continue
            _write(self.log, self.episode[i], self.t[i], actions[i])
            self.t[i] += 1
            limit = chain_limit(self.episode[i], self.limits)
            reward[i], terminated[i] = self.t[i], self.t[i] == self.length
            truncated[i] = limit is not None and self.t[i] >= limit
            self.ended[i] = terminated[i] or truncated[i]
        return self._observe(), reward, terminated, truncated, {}

    def _start(self, i, seed):
        # an episode without a seed is named by a running number whose remainder says which environment it is in
        self.episode[i] = self.count * self.num_envs + i if seed is None else seed
        self.count += seed is None
        self.t[i], self.ended[i] = 0, False

    def _observe(self):
        for i in range(self.num_envs):
            self._observation[i] = chain_observation(self.t[i], 0 if self.anonymous else self.episode[i])
        return self._observation if self.reuse else self._observation.copy()

    def close_extras(self, **kwargs):
        if self.log is not None:
            self.log.close()


MASKED_ACTIONS = 5


def legal_actions(observation):
    """Which actions are legal at observations ``[..., 3]`` of a :class:`MaskedChain`: never none, and rarely the same.

    Being a function of the observation, it can be asked again of whatever has been stored.
    """
    t, episode = np.asarray(observation)[..., 0].astype(np.int64), chain_episode(observation)
    code = (7 * t + 3 * episode) % 31 + 1
    return (code[..., None] >> np.arange(MASKED_ACTIONS)) % 2 == 1


def assert_masks_are_right(rows, length=CHAIN_LENGTH):
    """Stored rows ``[..., *]`` of a :class:`MaskedChain` know what was legal before and after, and did it."""
    assert rows.action_mask.dtype == rows.next_action_mask.dtype == np.bool_
    assert (rows.action_mask == legal_actions(rows.observation)).all()
    terminal = rows.next_observation[..., :1] == length
    # nothing is chosen in a terminal state: there everything counts as legal
    assert (rows.next_action_mask == (legal_actions(rows.next_observation) | terminal)).all()
    assert np.take_along_axis(rows.action_mask, rows.action[..., None], -1).all()


class MaskedChain(Chain):
    """A chain that says which actions are legal, and breaks down at one that is not.

    Args:
        where: ``info``, or what kind of Dict observation the mask is a part of: ``observation`` (one other key) or
            ``observations`` (two).
        at_the_end: What a terminal state says: the mask ``as ever``, that nothing is legal (``none``) or nothing at all
            (``missing``).
        start: The first action of the space.
    """

    def __init__(self, where="info", at_the_end="as ever", start=0, **kwargs):
        super().__init__(**kwargs)
        self.where, self.at_the_end = where, at_the_end
        self.action_space = spaces.Discrete(MASKED_ACTIONS, start=start)
        parts = {"position": Chain.observation_space, "legal": spaces.MultiBinary(MASKED_ACTIONS)}
        if where == "observations":
            parts["zero"] = spaces.Box(0, 0, (1,), np.float32)
        if where != "info":
            self.observation_space = spaces.Dict(parts)

    def reset(self, *, seed=None, options=None):
        self.position, info = super().reset(seed=seed, options=options)
        return self._say(self.position, info, False)

    def step(self, action):
        assert legal_actions(self.position)[action - self.action_space.start], f"{action} is illegal"
        self.position, reward, terminated, truncated, info = super().step(action)
        observation, info = self._say(self.position, info, terminated)
        return observation, reward, terminated, truncated, info

    def _say(self, position, info, terminated):
        mask = legal_actions(position).astype(np.int8)
        if terminated and self.at_the_end != "as ever":
            mask[:] = 0
        if self.where == "info":
            missing = terminated and self.at_the_end == "missing"
            return position, info if missing else info | {"legal": mask}
        rest = {"zero": np.zeros(1, np.float32)} if self.where == "observations" else {}
        return {"legal": mask, "position": position} | rest, info


class MaskedChainVector(ChainVector):
    """The same as a native vector environment; it hands out one and the same array of masks if told to ``reuse``.

    It does not break down at an illegal action: that is for its log to tell.

    Args:
        falls_silent: Whether it says nothing of anyone's legal actions when an episode has reached its terminal state.
    """

    single_action_space = spaces.Discrete(MASKED_ACTIONS)

    def __init__(self, *args, falls_silent=False, **kwargs):
        super().__init__(*args, **kwargs)
        self.falls_silent = falls_silent
        self.mask = np.zeros((self.num_envs, MASKED_ACTIONS), np.bool_)

    def reset(self, *, seed=None, options=None):
        observation, _ = super().reset(seed=seed, options=options)
        return observation, self._info(observation)

    def step(self, actions):
        observation, reward, terminated, truncated, _ = super().step(actions)
        return observation, reward, terminated, truncated, self._info(observation)

    def _info(self, observation):
        terminal = observation[:, :1] == self.length
        self.mask[:] = legal_actions(observation) & ~terminal
        if self.falls_silent and terminal.any():
            return {}
        return {"legal": self.mask if self.reuse else self.mask.copy()}


def _open_log(folder, env):
    return None if folder is None else (Path(folder) / f"{os.getpid()}-{id(env)}").open("w")


def _write(log, *values):
    if log is not None:
        log.write(" ".join(str(value) for value in values) + "\n")
        log.flush()


def chain_steps(folder):
    """The steps taken since everything was reset the last time: ``(episode, t, action)``, in order in each episode."""
    steps = []
    for path in sorted(Path(folder).iterdir()):
        lines = path.read_text().splitlines()
        resets = [number for number, line in enumerate(lines) if line == "reset"]
        steps += [tuple(map(int, line.split())) for line in lines[resets[-1] + 1 if resets else 0 :]]
    return steps


class Counted(Chain):
    """A chain that counts how many of its kind were made and closed in this process."""

    made = 0
    closed = 0

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        Counted.made += 1

    def close(self):
        super().close()
        Counted.closed += 1


class Noise(gym.Env):
    """Everything is random but follows from the seed and the actions: observations, rewards and both kinds of end."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Discrete(3)

    def __init__(self, ends=0.1):
        self.ends = ends

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.normal(size=2).astype(np.float32), {}

    def step(self, action):
        observation = (self.np_random.normal(size=2) + action).astype(np.float32)
        reward = float(self.np_random.normal()) - int(action)
        terminated, truncated = self.np_random.random(2) < self.ends
        return observation, reward, bool(terminated), bool(truncated), {}


class InPlace(gym.Env):
    """Counts its steps in one array that it hands out again and again; never ends before ``limit``."""

    observation_space = spaces.Box(0, 2**31, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, limit=5):
        self.limit = limit
        self.observation = np.zeros(2, np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.observation[:] = 0, seed % 2**20
        return self.observation, {}

    def step(self, action):
        self.observation[0] += 1
        return self.observation, 1.0, False, self.observation[0] >= self.limit, {}


class OffsetActions(gym.Env):
    """Actions are -3, -2 and -1; the reward is the action itself."""

    observation_space = spaces.Box(0, 1, (1,), np.float32)
    action_space = spaces.Discrete(3, start=-3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return np.ones(1, np.float32), {}

    def step(self, action):
        assert self.action_space.contains(action), f"{action} is not in {self.action_space}"
        self.t += 1
        return np.ones(1, np.float32), float(action), self.t == 5, False, {}


OBSERVATIONS = {
    "float32": (spaces.Box(-1, 1, (2, 3), np.float32), np.full((2, 3), 0.5, np.float32)),
    "float64": (spaces.Box(-1, 1, (2,), np.float64), np.array([0.1, 0.2])),
    "uint8": (spaces.Box(0, 255, (4, 6, 5), np.uint8), np.arange(120, dtype=np.uint8).reshape(4, 6, 5)),
    "int64": (spaces.Box(-9, 9, (2,), np.int64), np.array([-3, 4])),
    "bool": (spaces.Box(0, 1, (2,), np.bool_), np.array([True, False])),
    "discrete": (spaces.Discrete(4), np.int64(2)),
    "discrete_from_10": (spaces.Discrete(4, start=10), np.int64(12)),
    "multi_discrete": (spaces.MultiDiscrete([2, 3]), np.array([1, 2])),
    "multi_binary": (spaces.MultiBinary(3), np.array([1, 0, 1], np.int8)),
    "dict": (
        spaces.Dict(a=spaces.Box(0, 1, (2,), np.float32), b=spaces.Discrete(3)),
        {"a": np.array([0.25, 0.5], np.float32), "b": np.int64(1)},
    ),
    "tuple": (
        spaces.Tuple([spaces.Discrete(2), spaces.Box(0, 1, (1,), np.float32)]),
        (np.int64(1), np.array([0.75], np.float32)),
    ),
    "sequence": (spaces.Sequence(spaces.Discrete(2)), (0, 1)),
}


class Observing(gym.Env):
    """Shows one observation of a given kind for ever; an episode is three steps."""

    action_space = spaces.Discrete(2)

    def __init__(self, kind):
        self.observation_space, self.observation = OBSERVATIONS[kind]

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self.observation, {}

    def step(self, action):
        self.t += 1
        return self.observation, 1.0, self.t == 3, False, {}


class ObservingVector(VectorEnv):
    """The same as a native vector environment."""

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(self, num_envs, kind):
        self.num_envs = num_envs
        self.single_observation_space, observation = OBSERVATIONS[kind]
        self.single_action_space = Observing.action_space
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        if isinstance(observation, dict):
            self.observation = {key: np.stack([value] * num_envs) for key, value in observation.items()}
        else:
            self.observation = np.stack([observation] * num_envs)

    def reset(self, *, seed=None, options=None):
        return self.observation, {}

    def step(self, actions):
        no = np.zeros(self.num_envs, bool)
        return self.observation, np.ones(self.num_envs), no, no.copy(), {}


class Faulty(Chain):
    """A chain on which something goes wrong at one step of an episode.

    Args:
        fault: ``reward`` (NaN), ``observation`` (infinite) or ``exception``.
        at: At which step of the episode, counted from 1.
    """

    def __init__(self, fault="reward", at=3, **kwargs):
        super().__init__(**{"limits": (None,), **kwargs})
        self.fault, self.at = fault, at

    def step(self, action):
        observation, reward, *rest = super().step(action)
        if self.t == self.at:
            if self.fault == "exception":
                raise RuntimeError("the environment broke down")
            reward = np.nan if self.fault == "reward" else reward
            observation[0] = np.inf if self.fault == "observation" else observation[0]
        return observation, reward, *rest


class Dying(Chain):
    """A chain whose process is killed in its 50th step, if the seed of its first episode leaves ``remainder``."""

    def __init__(self, remainder):
        super().__init__(limits=(None,))
        self.remainder, self.first, self.steps = remainder, None, 0

    def reset(self, *, seed=None, options=None):
        self.first = seed if self.first is None else self.first
        return super().reset(seed=seed, options=options)

    def step(self, action):
        self.steps += 1
        if self.steps == 50 and self.first % 2 == self.remainder:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().step(action)


class Mortal(Chain):
    """A chain on which a life is lost at every third step, of more or less; it may be reset without a seed.

    Args:
        says: When it tells how many are left: ``always``, ``when reset`` or ``when stepped``.
    """

    def __init__(self, says="always", **kwargs):
        super().__init__(**kwargs)
        self.says = says

    def reset(self, *, seed=None, options=None):
        observation, _ = super().reset(seed=60_000 if seed is None else seed, options=options)
        self.lives = 9 - self.episode % 3
        return observation, {} if self.says == "when stepped" else {"lives": self.lives}

    def step(self, action):
        *outcome, _ = super().step(action)
        return *outcome, {} if self.says == "when reset" else {"lives": self.lives - self.t // 3}


class FilmedMortal(FilmedChain):
    """The same in pictures."""

    def __init__(self, **kwargs):
        gym.Wrapper.__init__(self, Mortal(**kwargs))


class ContinuousActions(Chain):
    """A chain whose action space is not Discrete."""

    action_space = spaces.Box(-1, 1, (2,), np.float32)


class WaitingVector(ChainVector):
    """A native chain that stays where it is for ten steps after everything was reset, like a game that counts down."""

    def reset(self, *, seed=None, options=None):
        self.countdown = 10
        return super().reset(seed=seed, options=options)

    def step(self, actions):
        if self.countdown == 0:
            return super().step(actions)
        self.countdown -= 1
        no = np.zeros(self.num_envs, bool)
        return self._observe(), np.zeros(self.num_envs), no, no.copy(), {}


class WalkVector(VectorEnv):
    """A native walk in two numbers: how far, which the action changes, and how long; it resets right or wrong.

    Args:
        resets: ``next`` (on the step after the end), ``within`` (within the step that ends an episode), ``twice`` (on
            the step after the end, though it was reset explicitly meanwhile), ``never``, ``ends again`` (it stays at
            its end) or ``raises`` (it must be reset explicitly).
        honours_mask: Whether it can reset some of its members alone.
        starts: ``random``, or always the ``same``.
        mode: What it says about its resets; ``None``: nothing.
        lengths: The shortest and longest episode.
        final: Where in ``info`` it leaves the last observation of an episode.
    """

    single_observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    single_action_space = spaces.Discrete(3)

    def __init__(
        self,
        num_envs,
        resets="next",
        honours_mask=True,
        starts="random",
        mode=AutoresetMode.NEXT_STEP,
        lengths=(5, 14),
        final=None,
    ):
        self.num_envs, self.resets, self.honours_mask, self.starts = num_envs, resets, honours_mask, starts
        self.metadata = {} if mode is None else {"autoreset_mode": mode}
        self.lengths, self.final = lengths, final
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.random = np.random.default_rng()
        self.state = np.zeros((num_envs, 2))
        self.left = np.zeros(num_envs, np.int64)
        self.ended = np.zeros(num_envs, bool)

    def reset(self, *, seed=None, options=None):
        mask = (options or {}).get("reset_mask")
        if mask is None or not self.honours_mask:
            mask = np.ones(self.num_envs, bool)
        if isinstance(seed, list):
            seed = seed[int(mask.argmax())]
        if seed is not None:
            self.random = np.random.default_rng(seed)
        for i in np.flatnonzero(mask):
            self._start(i)
            self.ended[i] &= self.resets == "twice"
        return self.state.astype(np.float32), {}

    def step(self, actions):
        terminated, info = np.zeros(self.num_envs, bool), {}
        for i, action in enumerate(actions):
            if self.ended[i] and self.resets in ("next", "twice"):
                self._start(i)
                self.ended[i] = False
                continue
            assert not self.ended[i] or self.resets != "raises", "stepped after its end"
            if not self.ended[i] or self.resets != "ends again":
                self.state[i] += (action - 1.2 if self.starts == "random" else 0, 1)
                self.left[i] -= 1
            terminated[i] = self.left[i] == 0
            self.ended[i] |= terminated[i]
        if self.resets == "within" and terminated.any():
            if self.final is not None:
                info[self.final] = np.array([*self.state.astype(np.float32), None], object)[:-1]
            for i in np.flatnonzero(terminated):
                self._start(i)
                self.ended[i] = False
        return self.state.astype(np.float32), np.ones(self.num_envs), terminated, np.zeros(self.num_envs, bool), info

    def _start(self, i):
        # where starts are random, nothing in one observation tells a first one
        self.state[i] = self.random.normal(scale=5, size=2) if self.starts == "random" else 0
        self.left[i] = self.random.integers(self.lengths[0], self.lengths[1] + 1)


NOT_AN_ENVIRONMENT = 42


class RecordingBuffer(ReplayBuffer):
    """Remembers every transition stored and every batch drawn, also what has been overwritten since."""

    def __init__(self, capacity=100_000, observations=None):
        super().__init__(capacity, observations)
        self.added = []
        self.sampled = []
        self.added_before_sample = []

    def add(self, transition):
        self.added.append(transition.map(np.array))
        super().add(transition)

    def sample(self, num_updates, batch_size, rng, env_steps=0):
        batch = super().sample(num_updates, batch_size, rng, env_steps)
        self.sampled.append(batch.transition.map(lambda field: field.clone().numpy()))
        self.added_before_sample.append(sum(len(transition.action) for transition in self.added))
        return batch

    @property
    def all_added(self):
        """Every transition stored so far, one after the other."""
        fields = zip(*self.added, strict=True)
        return Transition(*(None if field[0] is None else np.concatenate(field) for field in fields))


class FilmingBuffer(RecordingBuffer):
    """Keeps the pictures of a :class:`FilmedChain` as shared frames; what it remembers are the chain's own numbers."""

    def __init__(self, capacity=100_000):
        super().__init__(capacity, SharedFrames(2, spare_frames=100))

    def add(self, transition):
        super().add(transition)
        slots = np.arange(self._count - len(transition.action), self._count) % self.capacity
        before, after = map(FilmedChain.read, self.observations.take(slots))
        self.added[-1] = self.added[-1]._replace(observation=before, next_observation=after)

    def sample(self, num_updates, batch_size, rng, env_steps=0):
        batch = super().sample(num_updates, batch_size, rng, env_steps)
        drawn = self.sampled[-1]
        before, after = map(FilmedChain.read, (drawn.observation, drawn.next_observation))
        self.sampled[-1] = drawn._replace(observation=before, next_observation=after)
        return batch


class PrioritizedFilmingBuffer(FilmingBuffer, PrioritizedReplayBuffer):
    """The same, drawn by priority."""

    def __init__(self, capacity=100_000):
        PrioritizedReplayBuffer.__init__(self, capacity, observations=SharedFrames(2, spare_frames=100))
        self.added, self.sampled, self.added_before_sample = [], [], []


gym.register("Chain-v0", entry_point=Chain, vector_entry_point=ChainVector)
gym.register("Noise-v0", entry_point=Noise)


class Film(gym.Env):
    """Stacks of random pictures, of episodes that end in one way or the other after a random number of steps.

    The first stack repeats the first picture, or has black ones before it, as ``padding`` says; now and then a picture
    equals the one before it.
    """

    action_space = spaces.Discrete(2)

    def __init__(self, stack_size=4, channels=1, padding="repeat", dtype="uint8", longest=12):
        shape = (stack_size * channels, 3, 5)
        self.observation_space = spaces.Box(0, 255 if dtype == "uint8" else 1, shape, np.dtype(dtype))
        self.stack_size, self.channels, self.padding, self.longest = stack_size, channels, padding, longest

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        first = self.picture()
        before = first if self.padding == "repeat" else np.zeros_like(first)
        self.pictures = [before] * (self.stack_size - 1) + [first]
        self.left = int(self.np_random.integers(1, self.longest + 1))
        return np.concatenate(self.pictures), {}

    def step(self, action):
        still = self.np_random.random() < 0.1
        self.pictures = [*self.pictures[1:], self.pictures[-1] if still else self.picture()]
        self.left -= 1
        terminated, truncated = self.left == 0, self.left == 0 and self.np_random.random() < 0.5
        ended = terminated and not truncated
        return np.concatenate(self.pictures), float(self.np_random.normal()), ended, bool(truncated), {}

    def picture(self):
        high = int(self.observation_space.high.flat[0]) + 1
        shape = (self.channels, *self.observation_space.shape[1:])
        return self.np_random.integers(high, size=shape).astype(self.observation_space.dtype)


class Pictures(gym.Env):
    """Shows random images; which action is right depends on the brightest of three corners of the one before."""

    action_space = spaces.Discrete(3)

    def __init__(self, shape=(4, 36, 36), length=10):
        self.observation_space = spaces.Box(0, 255, tuple(shape), np.uint8)
        self.length = length

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = 0
        return self._show(), {}

    def step(self, action):
        corners = self.picture[0, 0, 0], self.picture[0, 0, -1], self.picture[0, -1, 0]
        reward = float(np.argmax(corners) == action)
        self.t += 1
        return self._show(), reward, False, self.t == self.length, {}

    def _show(self):
        self.picture = self.np_random.integers(256, size=self.observation_space.shape, dtype=np.uint8)
        return self.picture.copy()

"""Small Markov decision processes written out in full, and what is exactly true of them."""

from typing import NamedTuple

import gymnasium as gym
import numpy as np
import torch

from lightning_dqn import ReplayBatch, Transition


class Table(NamedTuple):
    """Everything that can happen, a row for each outcome of each legal action in each state."""

    state: np.ndarray
    action: np.ndarray
    probability: np.ndarray
    reward: np.ndarray
    following: np.ndarray
    terminated: np.ndarray
    legal: np.ndarray  # [S, A]


def table_of(rows, legal):
    """From tuples of a state, an action and an outcome as toy-text environments list them."""
    state, action, probability, following, reward, terminated = (np.array(column) for column in zip(*rows, strict=True))
    return Table(state, action, probability, reward.astype(float), following, terminated.astype(bool), legal)


def toy_text(env_id, masked=False, **kwargs):
    """The table that an environment brings with it; with masks, without the actions that it says are not legal."""
    env = gym.make(env_id, **kwargs).unwrapped
    num_states, num_actions = env.observation_space.n, env.action_space.n
    legal = np.ones((num_states, num_actions), bool)
    if masked:
        legal = np.stack([env.action_mask(state) for state in range(num_states)]).astype(bool)
    rows = [
        (state, action, *outcome)
        for state, actions in env.P.items()
        for action, outcomes in actions.items()
        for outcome in outcomes
        if legal[state, action]
    ]
    return table_of(rows, legal)


def taxi_to_one_place():
    """The legal actions of the taxi for the passengers to the first of the four places: a quarter of all states."""
    table = toy_text("Taxi-v4", masked=True)
    rows = table.state % 4 == 0
    state, action, probability, reward, following, terminated = (column[rows] for column in table[:-1])
    return Table(state // 4, action, probability, reward, following // 4, terminated, table.legal[::4])


def garnet(num_states, num_actions, branching, seed):
    """A random process: each action leads to ``branching`` states, with normal rewards; entering state 0 ends it.

    "On the generation of Markov decision processes" (Archibald, McKinnon and Thomas 1995).
    """
    rng = np.random.default_rng(seed)
    rows = [
        (state, action, probability, following, rng.normal(), following == 0)
        for state in range(num_states)
        for action in range(num_actions)
        for probability, following in zip(
            rng.dirichlet(np.ones(branching)), rng.choice(num_states, branching, replace=False), strict=True
        )
    ]
    return table_of(rows, np.ones((num_states, num_actions), bool))


def lottery(num_states=5, num_prizes=16):
    """Action 0 takes the prize of a state and ends it, action 1 goes on to the next state for 0.1.

    The prizes are spread around ``state / 2`` as ``-cos(pi u)`` of a uniform ``u``, so the quantile of a fraction is
    ``state / 2 - cos(pi tau)``. Going on is one outcome written out as many times as there are prizes.
    """
    prizes = -np.cos(np.pi * (np.arange(num_prizes) + 0.5) / num_prizes)
    rows = []
    for state in range(num_states):
        rows += [(state, 0, 1 / num_prizes, state, state / 2 + prize, True) for prize in prizes]
        rows += [(state, 1, 1 / num_prizes, (state + 1) % num_states, -0.1, False)] * num_prizes
    return table_of(rows, np.ones((num_states, 2), bool))


def reachable(table, start):
    """The states in which one can come to act, from a state on."""
    found, known = [start], {start}
    while found:
        rows = (table.state == found.pop()) & ~table.terminated
        new = set(table.following[rows].tolist()) - known
        known |= new
        found += new
    return sorted(known)


def one_hot(state, num_states, tiles):
    """Observations ``[B, tiles * num_states]``: the one-hot state, ``tiles`` times."""
    return torch.nn.functional.one_hot(torch.as_tensor(state), num_states).repeat(1, tiles).to(torch.int8)


def whole_table(table, gamma, num_updates, tiles=1):
    """One Lightning batch: the whole table ``num_updates`` times, each row with its probability as its weight.

    Scaled by the number of rows, the mean over the rows has for each state and action the gradient of the exact
    expectation over its outcomes.
    """

    def repeated(field):
        return field.expand(num_updates, *field.shape)

    transition = Transition(
        one_hot(table.state, len(table.legal), tiles),
        torch.from_numpy(table.action),
        torch.from_numpy(table.reward).float(),
        torch.from_numpy(gamma * ~table.terminated).float(),
        one_hot(table.following, len(table.legal), tiles),
    )
    if not table.legal.all():
        following = np.where(table.terminated[:, None], True, table.legal[table.following])
        transition = transition._replace(
            action_mask=torch.from_numpy(table.legal[table.state]), next_action_mask=torch.from_numpy(following)
        )
    weight = torch.from_numpy(table.probability * len(table.state)).float()
    index = torch.zeros(num_updates, len(weight), dtype=torch.int64)
    return ReplayBatch(transition.map(repeated), index, repeated(weight))


class Repeated:
    """A dataloader of one batch, many times."""

    def __init__(self, batch, times):
        self.batch, self.times = batch, times

    def __len__(self):
        return self.times

    def __iter__(self):
        return (self.batch for _ in range(self.times))


# the truth, as slow loops in float64


def greedy_policy(q, legal):
    """Probability 1 for the first of the best legal actions, and its logarithm, taken for 0 elsewhere too."""
    policy = np.zeros(q.shape)
    policy[np.arange(len(q)), np.where(legal, q, -np.inf).argmax(1)] = 1
    return policy, np.zeros(q.shape)


def soft_policy(q, legal, temperature):
    """The softmax over legal actions and ``temperature * log pi``, taken for 0 where an action is not legal."""
    q = np.where(legal, q, -np.inf)
    best = q.max(1, keepdims=True)
    log_policy = q - best - temperature * np.log(np.exp((q - best) / temperature).sum(1, keepdims=True))
    return np.exp(log_policy / temperature), np.where(legal, log_policy, 0.0)


def optimal_values(table, gamma, sweeps=400):
    """Q* by value iteration; 0 for actions that are not legal."""
    q = np.zeros(table.legal.shape)
    for _ in range(sweeps):
        best = np.where(table.legal, q, -np.inf).max(1)
        q = _expectation(table, table.reward + gamma * ~table.terminated * best[table.following])
    return q


def munchausen_values(table, gamma, rule, sweeps=400):
    """The fixed point of equation 2 of "Munchausen Reinforcement Learning" (Vieillard et al. 2020), clipped."""
    q = np.zeros(table.legal.shape)
    for _ in range(sweeps):
        policy, log_policy = soft_policy(q, table.legal, rule.temperature)
        value = (policy * (q - log_policy)).sum(1)
        praise = rule.alpha * log_policy[table.state, table.action].clip(rule.log_policy_min, 0)
        q = _expectation(table, table.reward + praise + gamma * ~table.terminated * value[table.following])
    return q


def quantile_values(table, gamma, num_quantiles, munchausen=None, sweeps=200):
    """The quantiles at which quantile dynamic programming comes to rest, ``[S, A, M]``.

    Every sweep takes the distribution of the target of each state and action, exactly, and of it the quantiles at the
    midpoints, which minimise the quantile regression error ("Distributional Reinforcement Learning with Quantile
    Regression", Dabney et al. 2018, lemma 2). ``munchausen`` is that rule; else the policy is greedy.
    """
    fractions = (np.arange(num_quantiles) + 0.5) / num_quantiles
    quantiles = np.zeros((*table.legal.shape, num_quantiles))
    for _ in range(sweeps):
        reward = table.reward
        if munchausen is None:
            policy, log_policy = greedy_policy(quantiles.mean(-1), table.legal)
        else:
            policy, log_policy = soft_policy(quantiles.mean(-1), table.legal, munchausen.temperature)
            praise = log_policy[table.state, table.action].clip(munchausen.log_policy_min, 0)
            reward = reward + munchausen.alpha * praise
        value = (policy[..., None] * (quantiles - log_policy[..., None])).sum(1)
        target = reward[:, None] + gamma * ~table.terminated[:, None] * value[table.following]
        for state, action in zip(*np.nonzero(table.legal), strict=True):
            rows = (table.state == state) & (table.action == action)
            atoms, mass = target[rows].ravel(), table.probability[rows].repeat(num_quantiles) / num_quantiles
            order = atoms.argsort()
            reached = mass[order].cumsum()
            quantiles[state, action] = atoms[order][reached.searchsorted(fractions * reached[-1])]
    return quantiles


def _expectation(table, outcome):
    q = np.zeros(table.legal.shape)
    np.add.at(q, (table.state, table.action), table.probability * outcome)
    return q

"""Actors without Ray: what they send is right, and the learner reads it as it was meant."""

from collections import Counter

import numpy as np
import pytest
import torch

from lightning_dqn import EpsilonLadder, ExperienceDataModule, Greedy, PrioritizedReplayBuffer, SharedFrames
from lightning_dqn.experience.faults import EnvironmentFailure
from lightning_dqn.ray.actor import Actor, Blueprint
from lightning_dqn.ray.messages import Inbox
from tests.environments import Chain, FilmedChain, Mortal, RecordingBuffer, chain_limit, chain_steps
from tests.test_data_path import ENVIRONMENTS, GAMMA, assert_rows_are_right, expected_starts, started
from tests.test_prioritized_path import naive_td_error

NUM_ENVS = 4


def make_actors(make_model, data, count=2, explorer=EpsilonLadder(), priorities=False, incarnation=0, entropy=(0, 0)):
    """Actors as a run would have them, in this process; and the learner's ends."""
    model = make_model(data)
    blueprint = Blueprint(data.without_experience(), model, explorer, count, entropy, priorities)
    actors = [Actor(blueprint, index, incarnation) for index in range(count)]
    return actors, [Inbox(index * data.num_envs, count * data.num_envs) for index in range(count)], model


def make_data(env_id=Chain, buffer=None, log=None, **kwargs):
    if log is not None:
        log.mkdir()
        kwargs["env_kwargs"] = {"log": str(log), **kwargs.get("env_kwargs", {})}
    buffer = RecordingBuffer(1000) if buffer is None else buffer
    data = ExperienceDataModule(env_id, **({"num_envs": NUM_ENVS, "gamma": GAMMA, "buffer": buffer} | kwargs))
    data.open_buffer()
    return data


def exchange(actors, inboxes, data, lengths, ask=lambda actor, num_steps: actor.explore(num_steps, 0, 0)):
    """Has the actors send messages of these lengths in turn, and keeps what they bring."""
    messages = [[] for _ in actors]
    for turn, num_steps in enumerate(lengths):
        who = turn % len(actors)
        message = ask(actors[who], num_steps)
        messages[who].append(message)
        transition = inboxes[who].read(message, data.buffer)
        if transition is not None:
            data.buffer.add(transition)
    return messages


@pytest.mark.parametrize("n_step", [1, 3, 5])
@pytest.mark.parametrize("source", ENVIRONMENTS)
def test_every_step_starts_one_row_and_every_row_is_exact(make_model, tmp_path, source, n_step):
    chosen = dict(ENVIRONMENTS[source])
    buffer = chosen.pop("buffer", RecordingBuffer)(1000)
    data = make_data(log=tmp_path / "log", buffer=buffer, n_step=n_step, **chosen)
    # those that ignore seeds name the episodes of every actor alike
    actors, inboxes, _ = make_actors(make_model, data, 1 if "mask ignored" in source else 2)
    messages = exchange(actors, inboxes, data, [1, 1, 2, 7, 3, 1, 8, 8, 5])
    for actor in actors:
        actor._envs.close()
    steps = chain_steps(tmp_path / "log")
    assert sum(message.env_steps for sent in messages for message in sent) == len(steps) >= 36 * NUM_ENVS
    rows = buffer.all_added
    assert_rows_are_right(rows, n_step)
    assert (rows.action_mask is not None) == ("action_mask" in chosen)
    starts = started(rows)
    assert max(starts.values()) == 1
    assert starts == expected_starts(steps, n_step)


@pytest.mark.parametrize("n_step", [1, 3])
def test_a_lost_life_closes_windows(make_model, tmp_path, n_step):
    data = make_data(Mortal, log=tmp_path / "log", n_step=n_step, life_loss=True)
    exchange(*make_actors(make_model, data)[:2], data, [3, 8, 8, 8])
    rows = data.buffer.all_added
    t, following = rows.observation[:, 0].astype(int), rows.next_observation[:, 0].astype(int)
    assert (following <= 3 * (t // 3 + 1)).all()
    lost = np.isin(following, (3, 6, 7))
    assert lost.any()
    assert ((rows.discount == 0) == lost).all()


@pytest.mark.parametrize("n_step", [1, 4])
def test_every_observation_travels_once(make_model, n_step):
    data = make_data(n_step=n_step)
    messages = exchange(*make_actors(make_model, data)[:2], data, [1, 5, 4, 2, 9, 9])
    for sent in messages:
        assert [message.first for message in sent] == np.cumsum([0, *(len(m.observation) for m in sent)])[:-1].tolist()
        steps = sum(message.env_steps for message in sent)
        resets = sum(len(message.episodes) for message in sent)
        assert sum(len(message.observation) for message in sent) == NUM_ENVS + steps + resets
        for message in sent:
            assert len(message.env) == len(message.observation)
            # no more is remembered than what open windows and the next action need
            assert message.first + len(message.observation) - message.oldest <= 2 * NUM_ENVS * n_step


def test_frames_are_shared_over_messages(make_model):
    data = make_data(FilmedChain, buffer=PrioritizedReplayBuffer(500, observations=SharedFrames(2, 0)))
    messages = exchange(*make_actors(make_model, data)[:2], data, [2] * 20)
    steps = 40 * NUM_ENVS
    episodes = sum(len(message.episodes) for sent in messages for message in sent) + 2 * NUM_ENVS
    # one frame a step, and two at the start of an episode, of which the first is black
    assert data.buffer.observations.frames.count == steps + 2 * episodes


def test_first_priorities_are_the_td_errors_of_the_network_that_acted(make_model):
    data = make_data(n_step=3, buffer=PrioritizedReplayBuffer(1000))
    actors, inboxes, model = make_actors(make_model, data, priorities=True)
    torch.manual_seed(5)
    for version in (3, 9):
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.3 * torch.randn(parameter.shape))
        for actor, inbox in zip(actors, inboxes, strict=True):
            actor.load(version, model.state_dict())
            message = actor.explore(5, 0, 0)
            assert message.version == version
            first = data.buffer.count
            data.buffer.add(inbox.read(message, data.buffer))
            rows = data.buffer.storage.map(lambda field, first=first: field[first : data.buffer.count])
            by_hand = [naive_td_error(model, rows.map(lambda field, i=i: field[i])) for i in range(len(rows.action))]
            assert message.td_error.tolist() == pytest.approx(by_hand, rel=1e-4, abs=1e-5)
            assert len(set(by_hand)) > 3


def test_without_priorities_nobody_computes_them(make_model):
    data = make_data()
    actors, _, _ = make_actors(make_model, data)
    assert actors[0].explore(3, 0, 0).td_error is None


def test_a_message_may_bring_no_transition(make_model):
    data = make_data(n_step=5, env_kwargs={"limits": (None,)})
    (actor, _), (inbox, _), _ = make_actors(make_model, data, priorities=True)
    message = actor.act_at_random(2)
    assert message.transition is None
    assert message.td_error is None
    assert inbox.read(message, data.buffer) is None
    assert len(inbox.read(actor.act_at_random(3), data.buffer).action) == NUM_ENVS


def test_it_acts_by_the_weights_it_was_given(make_model):
    data = make_data("CartPole-v1")
    (actor,), _, model = make_actors(make_model, data, 1, explorer=Greedy())
    for best in (0, 1):
        (bias,) = [
            p for name, p in model.named_parameters() if name.startswith("online.head") and name.endswith("bias")
        ]
        with torch.no_grad():
            bias.copy_(torch.where(torch.arange(2) == best, 1000.0, 0.0))
        actor.load(best, model.state_dict())
        assert set(actor.explore(3, 0, 0).transition.action.tolist()) == {best}
    assert set(actor.act_at_random(20).transition.action.tolist()) == {0, 1}


def test_every_actor_and_incarnation_has_random_numbers_of_its_own(make_model):
    data = make_data(env_kwargs={"limits": (None,)})

    def seen(index, incarnation, entropy=(0, 0)):
        actors, _, _ = make_actors(make_model, data, incarnation=incarnation, entropy=entropy)
        message = actors[index].act_at_random(3)
        return message.observation.tobytes(), message.transition.action.tobytes(), torch.rand(1).item()

    same, *others = [seen(0, 0), seen(1, 0), seen(0, 1), seen(0, 0, (0, 500)), seen(0, 0, (1, 0))]
    assert seen(0, 0)[:2] == same[:2]
    assert len({same[0], *(other[0] for other in others)}) == 5
    assert len({same[1], *(other[1] for other in others)}) == 5


def test_the_ladder_goes_over_all_actors(make_model):
    data = make_data()
    actors, _, _ = make_actors(make_model, data, 3)
    epsilons = np.concatenate([actor.explorer.epsilons(NUM_ENVS) for actor in actors])
    assert epsilons == pytest.approx([0.4 ** (1 + 7 * i / 11) for i in range(12)])


def test_explorers_read_the_clock_of_the_run(make_model):
    class Noting(Greedy):
        def __call__(self, q_values, env_steps, episodes, rng):
            clock.append((env_steps, episodes))
            return super().__call__(q_values, env_steps, episodes, rng)

        def share(self, index, count):
            return self

    clock = []
    data = make_data("CartPole-v1")
    (actor,), _, _ = make_actors(make_model, data, 1, explorer=Noting())
    actor.explore(2, 1000, 70)
    actor.explore(1, 5000, 90)
    assert clock == [(1000, 70), (1000 + NUM_ENVS, 70), (5000, 90)]


class Fragile(Chain):
    """Breaks down once, in the first environment that gets so far."""

    broken = False

    def step(self, action):
        if self.t == 2 and not Fragile.broken:
            Fragile.broken = True
            raise OSError("cable")
        return super().step(action)


def test_an_environment_that_breaks_down_is_made_again_and_the_user_is_told(make_model, tmp_path):
    Fragile.broken = False
    data = make_data(Fragile, n_step=3, on_env_error="restart", log=tmp_path / "log")
    (actor,), (inbox,), _ = make_actors(make_model, data, 1)
    messages = exchange([actor], [inbox], data, [2, 2, 6])
    assert [len(message.warnings) for message in messages[0]] == [0, 1, 0]
    assert "broke down with OSError: cable" in messages[0][1].warnings[0]
    assert "1 of 4 began a new episode" in messages[0][1].warnings[0]
    assert_rows_are_right(data.buffer.all_added, 3)
    assert max(started(data.buffer.all_added).values()) == 1
    ends = Counter(length for message in messages[0] for _, length in message.episodes)
    assert set(ends) <= {chain_limit(0) or 7, 4, 5, 1, 7}


def test_an_environment_that_breaks_down_may_end_the_run(make_model):
    Fragile.broken = False
    (actor,), _, _ = make_actors(make_model, make_data(Fragile), 1)
    with pytest.raises(EnvironmentFailure, match=r"environment \d broke down with OSError: cable"):
        actor.explore(8, 0, 0)

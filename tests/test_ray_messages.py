"""Both ends of the account of observations, without environments or Ray."""

import numpy as np
import pytest

from lightning_dqn import ReplayBuffer, Transition
from lightning_dqn.ray.messages import Inbox, Message, Outbox


def transition(before, after):
    before, after = np.asarray(before), np.asarray(after)
    return Transition(before, np.arange(len(before)), np.full(len(before), 0.1), np.full(len(before), 0.9), after)


def test_what_is_seen_is_numbered_in_the_order_of_time():
    outbox = Outbox(3)
    first = outbox.remember(np.array([[10.0], [11.0], [12.0]]))
    second = outbox.remember(np.array([[20.0], [21.0], [22.0]]), np.array([False, True, False]))
    third = outbox.remember(np.array([[30.0], [31.0], [32.0]]))
    assert (first.tolist(), second.tolist(), third.tolist()) == ([0, 1, 2], [0, 3, 2], [4, 5, 6])
    observation, env, number, added = outbox.take()
    assert observation[:, 0].tolist() == [10, 11, 12, 21, 30, 31, 32]
    assert env.tolist() == [0, 1, 2, 1, 0, 1, 2]
    assert (number, added) == (0, None)


def test_transitions_find_their_observations_as_long_as_these_are_kept():
    outbox = Outbox(2)
    outbox.remember(np.array([[1.0], [2.0]], np.float32))
    outbox.remember(np.array([[3.0], [4.0]], np.float32))
    outbox.add(transition([], []))
    outbox.take()
    outbox.forget(2)
    outbox.remember(np.array([[5.0], [6.0]], np.float32))
    outbox.add(transition([2], [4]))
    outbox.add(transition([3, 4], [5, 5]))
    observation, _, number, added = outbox.take()
    assert (observation.ravel().tolist(), number) == ([5, 6], 4)
    assert (added.observation.tolist(), added.action.tolist()) == ([2, 3, 4], [0, 0, 1])
    whole = outbox.observations_of(added)
    assert whole.observation.ravel().tolist() == [3, 4, 5]
    assert whole.next_observation.ravel().tolist() == [5, 6, 6]
    assert str(whole.reward.dtype) == str(whole.discount.dtype) == "torch.float32"


def test_the_learner_finds_what_an_earlier_message_brought():
    buffer = ReplayBuffer(10)
    buffer.allocate((1,), np.dtype(np.float32))
    inbox = Inbox(0, 2)
    rest = {"td_error": None, "episodes": [], "env_steps": 0, "version": 0, "warnings": []}
    first = np.array([[1.0], [2.0], [3.0]], np.float32)
    first.flags.writeable = False  # as arrays in Ray's store are
    assert inbox.read(Message(first, np.array([0, 1, 0]), 0, 1, None, **rest), buffer) is None
    second = np.array([[4.0], [5.0]], np.float32)
    read = inbox.read(Message(second, np.array([1, 0]), 3, 4, transition([1, 2], [3, 4]), **rest), buffer)
    buffer.add(read)
    assert buffer.storage.observation[:2, 0].tolist() == [2, 3]
    assert buffer.storage.next_observation[:2, 0].tolist() == [4, 5]


def test_nothing_can_be_looked_up_before_something_was_taken():
    with pytest.raises(AssertionError, match="nothing was taken"):
        Outbox(1).observations_of(transition([0], [1]))
    with pytest.raises(AssertionError, match="nothing was taken"):
        Outbox(1).forget(0)

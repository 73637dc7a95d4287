"""The prioritised buffer against plain dictionaries keyed by the name of a transition."""

import copy
import itertools
import math

import numpy as np
import pytest
import torch

from lightning_dqn import (
    EpisodeDecay,
    ExponentialSchedule,
    LinearSchedule,
    PrioritizedReplayBuffer,
    ReplayBuffer,
    ReplayDataset,
    Transition,
    Until,
)
from lightning_dqn.experience.checkpoint import load_snapshot, save_snapshot
from tests.test_sum_tree import LAST, chi_square_p

SEEDS = range(20)


def rng(seed=0):
    return np.random.default_rng(seed)


def rows(numbers):
    """Transitions numbered so that every field tells which one it is."""
    numbers = np.asarray(numbers, np.int64)
    observation = np.stack([numbers, numbers + 0.25], axis=1).astype(np.float32)
    return Transition(observation, numbers, numbers / 2, numbers / 1024, observation + 1)


def make_buffer(capacity, stored=0, beta=1.0, **kwargs):
    """A buffer that holds the numbers 0, 1, 2, ... under the same names."""
    buffer = PrioritizedReplayBuffer(capacity, beta=LinearSchedule(beta, beta, 1), **kwargs)
    buffer.allocate((2,), np.dtype("float32"))
    for number in range(stored):
        buffer.add(rows([number]))
    return buffer


def learn(buffer, names, td_errors):
    """Tells the buffer TD errors, as of one minibatch."""
    buffer.update_priorities(torch.tensor([list(names)]), torch.tensor([list(td_errors)], dtype=torch.float64))


def leaves(buffer):
    return buffer.tree.priorities.tolist()


def state(buffer):
    """Everything that decides what the buffer does next, copied."""
    sums = [value.copy() for value in vars(buffer.tree).values() if isinstance(value, np.ndarray)]
    return {name: array.copy() for name, array in buffer.state_arrays().items()}, sums, buffer.max_priority


def assert_same(one, other):
    assert one[0].keys() == other[0].keys()
    assert all((one[0][name] == other[0][name]).all() for name in one[0])
    assert all((a == b).all() for a, b in zip(one[1], other[1], strict=True))
    assert one[2] == other[2]


class Naive:
    """The same replay as a dictionary from name to raw priority, one transition at a time."""

    def __init__(self, capacity, epsilon):
        self.capacity, self.epsilon = capacity, epsilon
        self.count, self.largest, self.priority = 0, 1.0, {}

    def add(self, count):
        for _ in range(count):
            self.priority[self.count] = self.largest
            self.priority.pop(self.count - self.capacity, None)
            self.count += 1

    def learn(self, names, td_errors):
        for name, error in zip(names, td_errors, strict=True):
            if name in self.priority:
                self.priority[name] = error + self.epsilon
                self.largest = max(self.largest, error + self.epsilon)

    def leaves(self, alpha):
        leaves = [0.0] * self.capacity
        for name, priority in self.priority.items():
            leaves[name % self.capacity] = priority**alpha
        return leaves


# -- priorities --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capacity", [1, 2, 7, 32, 33, 100, 1500])
@pytest.mark.parametrize(("alpha", "epsilon"), [(0.6, 1e-6), (1.0, 0.0), (0.0, 0.5)])
def test_priorities_are_those_of_a_dictionary_by_name(capacity, alpha, epsilon):
    buffer, naive, random = make_buffer(capacity, alpha=alpha, epsilon=epsilon), Naive(capacity, epsilon), rng(capacity)
    for _ in range(150):
        count = int(random.choice([0, 1, 3, random.integers(capacity + 1)]))
        count = min(count, capacity)
        buffer.add(rows(range(naive.count, naive.count + count)))
        naive.add(count)
        if naive.count:
            # old names too, and the same ones again
            names = random.integers(
                max(0, naive.count - 2 * capacity), naive.count, size=(2, int(random.integers(1, 9)))
            )
            errors = random.choice([0.0, 1.0, 30.0], size=names.shape) * random.random(names.shape) ** 2
            buffer.update_priorities(torch.from_numpy(names), torch.from_numpy(errors))
            naive.learn(names.flatten().tolist(), errors.flatten().tolist())
        np.testing.assert_allclose(leaves(buffer), naive.leaves(alpha), rtol=1e-14)
        assert buffer.max_priority == naive.largest
        assert buffer.tree.total == pytest.approx(math.fsum(naive.leaves(alpha)), rel=1e-13)


@pytest.mark.parametrize("alpha", [0.3, 0.6, 1.0])
@pytest.mark.parametrize("epsilon", [0.0, 1e-6, 0.1])
def test_a_new_transition_has_the_largest_priority_there_ever_was(alpha, epsilon):
    buffer = make_buffer(3, 1, alpha=alpha, epsilon=epsilon)
    assert leaves(buffer) == [1, 0, 0]
    learn(buffer, [0], [100.0])
    expected = (100 + epsilon) ** alpha
    buffer.add(rows([1, 2]))
    assert leaves(buffer) == pytest.approx([expected] * 3, rel=1e-12)
    # also when the transition that had it has become dull and then been overwritten
    learn(buffer, [0, 1, 2], [0.5, 0.25, 2.0])
    for number in range(3, 12):
        buffer.add(rows([number]))
        assert leaves(buffer)[number % 3] == pytest.approx(expected, rel=1e-12)
    assert buffer.max_priority == 100 + epsilon


def test_the_largest_priority_begins_at_one_and_is_no_smaller_after_small_errors():
    buffer = make_buffer(4, 1)
    learn(buffer, [0], [1e-3])
    buffer.add(rows([1]))
    assert leaves(buffer)[1] == 1
    assert leaves(buffer)[0] == pytest.approx((1e-3 + 1e-6) ** 0.6, rel=1e-12)


def test_a_td_error_in_float32_does_not_swallow_epsilon():
    buffer = make_buffer(2, 1, alpha=1.0, epsilon=1e-6)
    buffer.update_priorities(torch.tensor([[0]]), torch.tensor([[1000.0]], requires_grad=True))
    assert leaves(buffer)[0] == 1000 + 1e-6


def test_of_several_td_errors_of_one_transition_the_last_counts():
    buffer = make_buffer(4, 4, alpha=1.0, epsilon=0.0)
    # three updates of two: the third learned from number 2 last
    buffer.update_priorities(torch.tensor([[2, 1], [1, 2], [2, 3]]), torch.tensor([[9.0, 1], [2, 3], [4, 5]]))
    assert leaves(buffer) == [1, 2, 4, 5]
    assert buffer.max_priority == 9


def test_what_was_sampled_is_updated_and_nothing_else():
    buffer = make_buffer(200, 300, alpha=1.0, epsilon=0.0)
    batch = buffer.sample(3, 5, rng())
    error = batch.transition.action / 100
    buffer.update_priorities(batch.index, error)
    sampled = set(batch.transition.action.flatten().tolist())
    for slot, number in enumerate(buffer.storage.action.tolist()):
        assert leaves(buffer)[slot] == (np.float32(number) / np.float32(100) if number in sampled else 1)


# -- names -------------------------------------------------------------------------------------------------------------


def test_a_priority_for_a_transition_that_has_been_overwritten_is_dropped():
    buffer = make_buffer(5, 7, alpha=1.0, epsilon=0.0)  # 5 and 6 lie where 0 and 1 were
    before = state(buffer)
    learn(buffer, [0, 1], [50.0, 60.0])
    assert_same(state(buffer), before)
    learn(buffer, [1, 2, 0, 6], [50.0, 3.0, 60.0, 4.0])
    assert leaves(buffer) == [1, 4, 3, 1, 1]
    assert buffer.max_priority == 4


def test_a_transition_can_be_overwritten_between_its_sampling_and_its_priority():
    buffer = make_buffer(5, 5, alpha=1.0, epsilon=0.0)
    batch = buffer.sample(1, 50, rng())
    assert set(batch.index.flatten().tolist()) == set(range(5))
    buffer.add(rows([5, 6, 7]))
    buffer.update_priorities(batch.index, torch.full((1, 50), 0.125))
    assert leaves(buffer) == [1, 1, 1, 0.125, 0.125]
    again = buffer.sample(1, 50, rng())
    assert set(again.index.flatten().tolist()) == {5, 6, 7, 3, 4}
    assert (again.index == again.transition.action).all()


@pytest.mark.parametrize("capacity", [1, 4, 7])
@pytest.mark.parametrize("stored", range(1, 23))
def test_exactly_the_latest_names_are_known(capacity, stored):
    for name in range(stored):
        buffer = make_buffer(capacity, stored, alpha=1.0, epsilon=0.0)
        learn(buffer, [name], [7.0])
        expected = [float(slot < stored) for slot in range(capacity)]
        if name >= stored - capacity:
            expected[name % capacity] = 7
        assert leaves(buffer) == expected


@pytest.mark.parametrize("count", [1, 2, 3, 5, 7])
def test_rows_are_those_of_a_dictionary_by_name(count):
    buffer, kept = make_buffer(7, alpha=0.5), {}
    for start in range(0, 40, count):
        buffer.add(rows(range(start, start + count)))
        for name in range(start, start + count):
            kept[name] = rows([name])
            kept.pop(name - 7, None)
        batch = buffer.sample(2, 10, rng(start))
        buffer.update_priorities(batch.index, torch.rand(2, 10, generator=torch.Generator().manual_seed(start)))
        for place in itertools.product(range(2), range(10)):
            naive = kept[int(batch.index[place])]
            for field, expected in zip(batch.transition, naive, strict=True):
                assert (field is None) == (expected is None)
                if field is not None:
                    assert field[place].numpy().tolist() == np.asarray(expected, field.numpy().dtype)[0].tolist()


def test_masks_travel_with_their_transitions():
    buffer = PrioritizedReplayBuffer(5)
    buffer.allocate((2,), np.dtype("float32"), 3)
    random = rng()
    before, after = random.random((2, 9, 3)) < 0.5
    for name in range(9):
        buffer.add(rows([name])._replace(action_mask=before[[name]], next_action_mask=after[[name]]))
    batch = buffer.sample(3, 4, rng())
    assert (batch.transition.action_mask.numpy() == before[batch.index]).all()
    assert (batch.transition.next_action_mask.numpy() == after[batch.index]).all()


# -- what is refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, -1.0, -1e-3])
@pytest.mark.parametrize("place", [0, 3, 5])
@pytest.mark.parametrize("name", [8, 2])
@pytest.mark.parametrize("epsilon", [1e-6, 0.0])
def test_td_errors_that_are_none_are_refused_and_nothing_changes(bad, place, name, epsilon):
    buffer = make_buffer(5, 9, epsilon=epsilon)
    learn(buffer, [5, 6], [0.5, 2.0])
    before = state(buffer)
    names, errors = torch.tensor([4, 5, 6, 7, 8, 4]), torch.full((6,), 50.0)
    names[place], errors[place] = name, bad  # number 2 has been overwritten: its error is wrong all the same
    with pytest.raises(ValueError, match=r"^data\.buffer: TD errors must be finite and not negative"):
        buffer.update_priorities(names.view(2, 3), errors.view(2, 3))
    assert_same(state(buffer), before)


@pytest.mark.parametrize(
    ("field", "arguments"),
    [
        ("capacity", {"capacity": 0}),
        ("alpha", {"alpha": -0.1}),
        ("alpha", {"alpha": 1.1}),
        ("alpha", {"alpha": math.nan}),
        ("beta.start", {"beta": LinearSchedule(-0.1, 1.0, 10)}),
        ("beta.start", {"beta": ExponentialSchedule(math.nan, 1.0, 10)}),
        ("beta.end", {"beta": LinearSchedule(0.4, 1.1, 10)}),
        ("epsilon", {"epsilon": -1e-9}),
        ("epsilon", {"epsilon": math.inf}),
        ("epsilon", {"epsilon": math.nan}),
    ],
)
def test_arguments_out_of_range_are_refused_by_name(field, arguments):
    with pytest.raises(ValueError, match=rf"^data\.buffer\.{field} must be"):
        PrioritizedReplayBuffer(**arguments)


@pytest.mark.parametrize("arguments", [{"alpha": 0}, {"alpha": 1}, {"epsilon": 0}, {"beta": LinearSchedule(0, 0, 1)}])
def test_the_ends_of_the_ranges_are_allowed(arguments):
    buffer = PrioritizedReplayBuffer(5, **arguments)
    buffer.allocate((2,), np.dtype("float32"))
    buffer.add(rows(range(5)))
    assert (buffer.sample(2, 3, rng()).weight == 1).all()


def test_an_empty_buffer_says_what_is_missing():
    with pytest.raises(RuntimeError, match="the replay buffer is empty"):
        make_buffer(5).sample(1, 1, rng())


def test_more_at_once_than_fit_are_refused_and_nothing_changes():
    buffer = make_buffer(3, 2)
    before = state(buffer)
    with pytest.raises(ValueError, match=r"data\.buffer\.capacity: 4 transitions at once do not fit into 3"):
        buffer.add(rows(range(4)))
    assert_same(state(buffer), before)


def test_allocating_again_forgets_transitions_and_priorities():
    buffer = make_buffer(3, 5)
    learn(buffer, [3, 4], [100.0, 0.0])
    buffer.allocate((2,), np.dtype("float32"))
    assert len(buffer) == 0
    assert buffer.tree.total == 0
    buffer.add(rows([0]))
    assert leaves(buffer) == [1, 0, 0]


# -- memory ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("capacity", [1, 1000, 1024, 1025, 40_000])
@pytest.mark.parametrize("mask_size", [0, 3])
def test_storage_and_tree_take_the_memory_that_was_foretold(capacity, mask_size):
    buffer = PrioritizedReplayBuffer(capacity)
    buffer.allocate((4, 2), np.dtype("uint8"), mask_size)
    storage = sum(field.nbytes for field in buffer.storage if field is not None)
    tree = sum(value.nbytes for value in vars(buffer.tree).values() if isinstance(value, np.ndarray))
    assert buffer.num_bytes((4, 2), np.dtype("uint8"), mask_size) == storage + tree


@pytest.mark.parametrize("spare", [0, -1])
def test_the_tree_counts_when_the_memory_is_short(monkeypatch, spare):
    buffer = PrioritizedReplayBuffer(100_000)
    needed = buffer.num_bytes((4,), np.dtype("float32"))
    assert needed >= ReplayBuffer(100_000).num_bytes((4,), np.dtype("float32")) + 800_000
    monkeypatch.setattr("lightning_dqn.experience.memory.available_memory", lambda: needed + spare)
    monkeypatch.setattr("lightning_dqn.experience.memory.cgroup_headroom", lambda: None)
    if spare == 0:
        buffer.allocate((4,), np.dtype("float32"))
        return

    def refuse(*args, **kwargs):
        raise AssertionError("allocated")

    monkeypatch.setattr(torch, "empty", refuse)
    monkeypatch.setattr(np, "zeros", refuse)
    with pytest.raises(MemoryError, match=r"^data\.buffer\.capacity: the replay buffer does not fit"):
        buffer.allocate((4,), np.dtype("float32"))


# -- draws -------------------------------------------------------------------------------------------------------------


def test_a_sample_has_the_shapes_and_dtypes_of_a_batch():
    batch = make_buffer(10, 15).sample(3, 4, rng())
    assert batch.transition.observation.shape == batch.transition.next_observation.shape == (3, 4, 2)
    for field, dtype in [
        (batch.transition.action, torch.int64),
        (batch.transition.reward, torch.float32),
        (batch.transition.discount, torch.float32),
        (batch.index, torch.int64),
        (batch.weight, torch.float32),
    ]:
        assert field.shape == (3, 4)
        assert field.dtype == dtype


def filled(alpha, seed, size=300, capacity=1200):
    """A ring that has gone round once and whose TD errors, some of them 0, span two orders of magnitude."""
    buffer, random = make_buffer(capacity, alpha=alpha, epsilon=0.05), rng(seed)
    buffer.add(rows(range(size)))
    if capacity == size:
        buffer.add(rows(range(size, size + size // 2)))
    names = np.arange(buffer._count - size, buffer._count)
    errors = 5 * random.random(size) ** 2 * (random.random(size) < 0.9)
    buffer.update_priorities(torch.from_numpy(names).view(1, -1), torch.from_numpy(errors).view(1, -1))
    priority = np.empty(size)
    priority[names % capacity] = errors + 0.05
    return buffer, priority**alpha / (priority**alpha).sum()


@pytest.mark.parametrize(("alpha", "capacity"), [(0.0, 1200), (0.6, 1200), (1.0, 1200), (0.6, 300)])
def test_transitions_are_drawn_in_proportion_to_their_priorities(alpha, capacity):
    for seed in SEEDS:
        buffer, probabilities = filled(alpha, seed, capacity=capacity)
        # minibatches of one are independent draws
        slots = buffer.sample(80_000, 1, rng(seed + 1000)).index.numpy() % capacity
        p = chi_square_p(np.bincount(slots.reshape(-1), minlength=300), probabilities)
        assert 0.001 / len(SEEDS) < p < 1 - 0.001 / len(SEEDS)


def test_stratified_minibatches_draw_in_proportion_too():
    for seed in SEEDS:
        buffer, probabilities = filled(0.6, seed)
        slots = buffer.sample(1000, 32, rng(seed + 1000)).index.numpy()
        # strata make the counts more even than chance alone, never less
        assert chi_square_p(np.bincount(slots.reshape(-1), minlength=300), probabilities) > 0.001 / len(SEEDS)


@pytest.mark.parametrize("batch_size", [1, 2, 7, 32])
def test_the_draws_of_a_minibatch_come_from_equal_parts_of_the_total(batch_size):
    buffer = make_buffer(3000, 0, alpha=1.0, epsilon=0.0)
    buffer.add(rows(range(3000)))
    priority = rng().integers(1, 50, size=3000)
    buffer.update_priorities(torch.arange(3000).view(1, -1), torch.from_numpy(priority).view(1, -1))
    above = priority.cumsum()
    total = int(above[-1])
    slots = buffer.sample(200, batch_size, rng()).index.numpy()
    first, last = total / batch_size * np.arange(batch_size), total / batch_size * np.arange(1, batch_size + 1)
    # what was drawn lies, with a part of its priority at least, in the part of the draw
    assert (above[slots] > first).all()
    assert (above[slots] - priority[slots] < last).all()
    # and anywhere in it
    place = ((above[slots] - priority[slots] / 2 - first) * batch_size / total).reshape(-1)
    counts = np.histogram(np.clip(place, 0, 1), bins=10, range=(0, 1))[0]
    assert counts.min() > 0.4 * len(place) / 10
    assert counts.max() < 1.6 * len(place) / 10


def test_all_minibatches_are_drawn_at_once(monkeypatch):
    buffer, calls = make_buffer(50, 80), []

    def counted(name, function):
        def call(*args, **kwargs):
            calls.append(name)
            return function(*args, **kwargs)

        return call

    monkeypatch.setattr(buffer.tree, "sample", counted("draw", buffer.tree.sample))
    monkeypatch.setattr(buffer, "_gather", counted("gather", buffer._gather))
    batch = buffer.sample(8, 16, rng())
    assert calls == ["draw", "gather"]
    assert batch.index.shape == (8, 16)


def test_a_sample_follows_from_the_generator_and_from_nothing_else():
    buffer, _ = filled(0.6, 0)
    before, torch_state, numpy_state = state(buffer), torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    one, other, generator = buffer.sample(3, 8, rng(5)), buffer.sample(3, 8, rng(5)), rng(5)
    third, fourth = buffer.sample(3, 8, generator), buffer.sample(3, 8, generator)
    for batch in (other, third):
        assert torch.equal(batch.index, one.index)
        assert torch.equal(batch.weight, one.weight)
    assert not torch.equal(fourth.index, one.index)
    assert_same(state(buffer), before)
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert (np.random.get_state()[1] == numpy_state).all()  # noqa: NPY002


class Fixed:
    """A generator all of whose numbers are the same."""

    def __init__(self, number):
        self.number = number

    def random(self, size):
        return np.full(size, self.number)


@pytest.mark.parametrize("number", [0.0, 0.5, LAST])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 64, 1000])
@pytest.mark.parametrize("stored", [1, 5, 40, 1024, 1500])
def test_random_numbers_at_their_limits_draw_what_is_there(number, batch_size, stored):
    buffer = make_buffer(3000, 0, alpha=0.5)
    buffer.add(rows(range(stored)))
    learn(buffer, range(stored), 0.1 * rng().random(stored))
    batch = buffer.sample(2, batch_size, Fixed(number))
    assert ((batch.index >= 0) & (batch.index < stored)).all()
    assert (batch.index == batch.transition.action).all()
    assert torch.isfinite(batch.weight).all()
    if number == LAST:
        assert (batch.index[:, -1] == stored - 1).all()


def test_without_any_priority_draws_are_uniform_and_uncorrected():
    buffer = make_buffer(50, 80, epsilon=0.0, beta=0.7)
    learn(buffer, range(30, 80), [0.0] * 50)
    assert buffer.tree.total == 0
    batch = buffer.sample(500, 100, rng())
    assert (batch.weight == 1).all()
    assert (batch.index == batch.transition.action).all()
    p = chi_square_p(np.bincount(batch.index.flatten().numpy() - 30, minlength=50), np.full(50, 1 / 50))
    assert 0.001 < p < 0.999
    # the first that has a priority again is then drawn alone
    learn(buffer, [33], [1e-3])
    assert set(buffer.sample(2, 20, rng()).index.flatten().tolist()) == {33}


def test_with_no_epsilon_a_transition_without_error_is_not_drawn_again():
    buffer = make_buffer(20, 20, epsilon=0.0)
    learn(buffer, range(0, 20, 2), [0.0] * 10)
    assert set(buffer.sample(50, 20, rng()).index.flatten().tolist()) == set(range(1, 20, 2))


def test_with_an_epsilon_a_transition_without_error_is_drawn_as_often_as_it_says():
    buffer = make_buffer(10, 10, alpha=0.5, epsilon=0.01)
    learn(buffer, range(10), [0.0] + [0.99] * 9)
    drawn = (buffer.sample(20_000, 1, rng()).index == 0).sum().item()
    expected = 20_000 * 0.1 / 9.1
    assert abs(drawn - expected) < 4 * math.sqrt(expected)


# -- importance weights ------------------------------------------------------------------------------------------------


def with_priorities(priorities, beta, alpha=1.0):
    buffer = make_buffer(len(priorities), len(priorities), beta, alpha=alpha, epsilon=0.0)
    learn(buffer, range(len(priorities)), priorities)
    return buffer


def test_the_weights_of_priorities_1_2_3_4():
    batch = with_priorities([1.0, 2.0, 3.0, 4.0], 0.5).sample(1, 100, rng())
    table = torch.tensor([1, 0.70711, 0.57735, 0.5])
    assert set(batch.index.flatten().tolist()) == {0, 1, 2, 3}
    torch.testing.assert_close(batch.weight, table[batch.index], rtol=1e-5, atol=0)


@pytest.mark.parametrize("alpha", [0.6, 1.0])
@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_weights_are_those_of_the_paper_over_the_largest_of_their_own_minibatch(alpha, beta, batch_size):
    priorities = 10 * rng(1).random(40)
    probabilities = priorities**alpha / (priorities**alpha).sum()
    batch = with_priorities(priorities, beta, alpha).sample(100, batch_size, rng())
    for index, weight in zip(batch.index.tolist(), batch.weight, strict=True):
        raw = [(40 * probabilities[name]) ** -beta for name in index]
        assert weight.tolist() == pytest.approx([one / max(raw) for one in raw], rel=1e-6)
        assert weight.max() == 1


def test_transitions_not_stored_yet_do_not_count_in_the_weights():
    half, full = make_buffer(1000, 4, 0.5, alpha=1.0, epsilon=0.0), with_priorities([1.0, 2.0, 3.0, 4.0], 0.5)
    learn(half, range(4), [1.0, 2.0, 3.0, 4.0])
    one, other = half.sample(2, 10, rng()), full.sample(2, 10, rng())
    assert torch.equal(one.index, other.index)
    assert torch.equal(one.weight, other.weight)


@pytest.mark.parametrize("priorities", [[1e-30, 1e30], [1e-300, 1e-290], [1e290, 1e300]])
def test_weights_of_extreme_priorities_are_finite(priorities):
    buffer = with_priorities(priorities, 0.5)
    batch = buffer.sample(1, 2, Fixed(LAST))
    assert torch.isfinite(batch.weight).all()
    assert batch.weight.max() == 1


def test_an_alpha_of_zero_is_uniform_replay_without_correction():
    buffer = make_buffer(50, 80, alpha=0.0, epsilon=0.0)
    learn(buffer, range(30, 80), rng().random(50) * 100)
    batch = buffer.sample(50, 100, rng())
    assert (batch.weight == 1).all()
    # 100 equal parts of 50 equal priorities: each twice in every minibatch
    assert (torch.sort(batch.index, dim=1).values == torch.arange(30, 80).repeat_interleave(2)).sum() > 4500
    p = chi_square_p(np.bincount(batch.index.flatten().numpy() - 30, minlength=50), np.full(50, 1 / 50))
    assert p > 0.001


# -- beta --------------------------------------------------------------------------------------------------------------

BETAS = {0: 0.4, 50: 0.7, 100: 1.0, 200: 1.0}


def beta_of(batch):
    """The beta that the weights of priorities 1 and 4 give away."""
    ratio = batch.weight[batch.index == 1][0] / batch.weight[batch.index == 0][0]
    return -math.log(float(ratio)) / math.log(4)


@pytest.mark.parametrize(("env_steps", "beta"), BETAS.items())
def test_beta_follows_the_clock_of_environment_steps(env_steps, beta):
    buffer = with_priorities([1.0, 4.0], 1.0)
    buffer.beta = LinearSchedule(0.4, 1.0, 100)
    assert beta_of(buffer.sample(1, 20, rng(), env_steps)) == pytest.approx(beta, rel=1e-6)
    assert buffer.schedules(env_steps) == {"beta": pytest.approx(beta, rel=1e-12)}


def test_beta_follows_the_clock_of_the_dataset_at_the_moment_of_each_draw():
    buffer, clock = with_priorities([1.0, 4.0], 1.0), []
    buffer.beta = LinearSchedule(0.4, 1.0, 100)
    batches = iter(ReplayDataset(buffer, 20, 2, 10, rng(), clock=lambda: clock[-1]))
    for env_steps, beta in BETAS.items():
        clock.append(env_steps)
        assert beta_of(next(batches)) == pytest.approx(beta, rel=1e-6)


def test_the_default_beta_goes_from_0_4_to_1_in_a_hundred_thousand_steps():
    buffer = PrioritizedReplayBuffer()
    values = [buffer.schedules(env_steps)["beta"] for env_steps in (0, 50_000, 100_000, 200_000)]
    assert values == pytest.approx([0.4, 0.7, 1.0, 1.0], rel=1e-12)


# -- saving and restoring ----------------------------------------------------------------------------------------------


def saved(buffer):
    return {name: array.copy() for name, array in buffer.state_arrays().items()}


def step(buffer, generator):
    """One iteration of collecting and learning."""
    start = buffer._count
    buffer.add(rows(range(start, start + int(generator.integers(4)))))
    batch = buffer.sample(2, 6, generator, start)
    buffer.update_priorities(batch.index, torch.from_numpy(3 * generator.random((2, 6)) ** 2))
    return batch


@pytest.mark.parametrize("capacity", [7, 33, 1100])
@pytest.mark.parametrize("steps", [1, 4, 30, 200])
@pytest.mark.parametrize("through_files", [True, False])
def test_a_restored_buffer_goes_on_as_the_original_would(tmp_path, capacity, steps, through_files):
    buffer, generator = make_buffer(capacity, 2, alpha=0.7), rng(capacity)
    for _ in range(steps):
        step(buffer, generator)
    restored, arrays = make_buffer(capacity, 5, alpha=0.7), saved(buffer)
    learn(restored, [3, 4], [1000.0, 0.1])  # of which nothing must be left
    if through_files:
        save_snapshot(tmp_path / "snapshot", buffer.state_arrays(), {})
        arrays, _ = load_snapshot(tmp_path / "snapshot")
    restored.load_state_arrays(arrays)
    assert_same(state(restored), state(buffer))
    other = copy.deepcopy(generator)
    for _ in range(20):
        batch, again = step(buffer, generator), step(restored, other)
        assert torch.equal(batch.index, again.index)
        assert torch.equal(batch.weight, again.weight)
        assert torch.equal(batch.transition.observation, again.transition.observation)
        assert_same(state(restored), state(buffer))


@pytest.mark.parametrize("capacity", [5, 1024])  # in the second no item of the tree is left over
def test_a_restored_buffer_shares_nothing_with_what_it_was_restored_from(capacity):
    source, restored = make_buffer(capacity, capacity + 3), make_buffer(capacity)
    restored.load_state_arrays(source.state_arrays())
    before = state(restored)
    learn(source, [4, 7], [10.0, 0.1])
    source.add(rows([capacity + 3]))
    assert_same(state(restored), before)
    other = state(source)
    learn(restored, [3, 4], [20.0, 30.0])
    restored.add(rows([8, 9, 10]))
    assert_same(state(source), other)
    arrays = saved(source)
    restored.load_state_arrays(arrays)
    for array in arrays.values():
        array.fill(0)
    assert_same(state(restored), other)


@pytest.mark.parametrize(
    ("field", "capacity", "alpha", "leave_out"),
    [
        (r"data\.buffer\.alpha: the replay was saved with 0\.6, this one has 0\.5", 5, 0.5, ()),
        (
            r"data\.buffer: the saved replay has no alpha, max_priority, priority$",
            5,
            0.6,
            ("alpha", "priority", "max_priority"),
        ),
        (r"data\.buffer: the saved replay has no priority$", 5, 0.6, ("priority",)),
        (r"data\.buffer: the saved replay has no max_priority$", 5, 0.6, ("max_priority",)),
        (r"data\.buffer: the saved replay has no count$", 5, 0.6, ("count",)),
        (r"data\.buffer", 4, 0.6, ()),
        (r"data\.buffer\.capacity", 9, 0.6, ()),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_changes(field, capacity, alpha, leave_out):
    arrays = saved(make_buffer(5, 8))
    for name in leave_out:
        del arrays[name]
    buffer = make_buffer(capacity, 2, alpha=alpha)
    learn(buffer, [0, 1], [0.5, 7.0])
    before = state(buffer)
    with pytest.raises(ValueError, match="^" + field):
        buffer.load_state_arrays(arrays)
    assert_same(state(buffer), before)


def test_a_replay_saved_without_priorities_is_refused():
    uniform = ReplayBuffer(5)
    uniform.allocate((2,), np.dtype("float32"))
    uniform.add(rows(range(3)))
    with pytest.raises(ValueError, match=r"^data\.buffer: the saved replay has no alpha, max_priority, priority$"):
        make_buffer(5).load_state_arrays(uniform.state_arrays())


def test_priorities_saved_can_be_left_aside_by_a_uniform_buffer():
    uniform = ReplayBuffer(5)
    uniform.allocate((2,), np.dtype("float32"))
    uniform.load_state_arrays(make_buffer(5, 8).state_arrays())
    assert set(uniform.sample(5, 5, rng()).index.flatten().tolist()) == {3, 4, 5, 6, 7}


@pytest.mark.parametrize(
    "beta", [0.5, None, EpisodeDecay(0.4, 0.1, 0.9), Until(EpisodeDecay(0.4, 0.1, 0.9), 100, 1.0)], ids=str
)
def test_beta_is_a_schedule_over_environment_steps(beta):
    with pytest.raises(ValueError, match=r"data\.buffer\.beta must be a schedule over environment steps"):
        PrioritizedReplayBuffer(10, beta=beta)

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

from lightning_dqn import ReplayBuffer, ReplayDataset, Transition
from lightning_dqn.experience.n_step import NStepAccumulator
from lightning_dqn.experience.prioritized import PrioritizedReplayBuffer

DTYPES = [
    "bool",
    "uint8",
    "int8",
    "int16",
    "int32",
    "int64",
    "uint16",
    "uint32",
    "uint64",
    "float16",
    "float32",
    "float64",
]


def legal(numbers, num_actions):
    """Masks that tell a number from its neighbours."""
    return (np.asarray(numbers)[:, None] + np.arange(num_actions)) % 3 == 0


def rows(numbers, observation_shape=(2,), dtype="float32", masks=0):
    """Transitions numbered so that every field tells which one it is."""
    numbers = np.asarray(numbers, np.int64)
    observation = np.broadcast_to(
        numbers.reshape(-1, *[1] * len(observation_shape)), (len(numbers), *observation_shape)
    ).astype(dtype)
    fields = observation, numbers, numbers / 2, numbers / 1024, observation + np.ones((), dtype)
    return Transition(*fields, *((legal(numbers, masks), legal(numbers + 1, masks)) if masks else ()))


def make_buffer(capacity, observation_shape=(2,), dtype="float32", masks=0):
    buffer = ReplayBuffer(capacity)
    buffer.allocate(observation_shape, np.dtype(dtype), masks)
    return buffer


def tensors(transition):
    """The fields there are."""
    return [field for field in transition if field is not None]


def rng(seed=0):
    return np.random.default_rng(seed)


# -- the ring ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_step", [1, 3])
def test_observations_written_over_by_the_environment_stay_as_they_were(n_step):
    buffer, accumulator = make_buffer(20, (1,), masks=3), NStepAccumulator(1, n_step, 0.5)
    now, following = np.zeros((1, 1), np.float32), np.zeros((1, 1), np.float32)
    mask, next_mask = np.zeros((2, 1, 3), np.bool_)
    no, yes, action, reward = np.array([False]), np.array([True]), np.array([0]), np.array([1.0])
    for t in range(12):
        now[:], following[:] = t, t + 1
        action[:], reward[:] = t % 2, t
        mask[:], next_mask[:] = legal([t], 3), legal([t + 1], 3)
        buffer.add(accumulator.add(now, action, reward, no, no, following, yes, mask, next_mask))
        now[:] = following[:] = reward[:] = action[:] = -1
        mask[:] = next_mask[:] = False
    stored = 12 - n_step + 1
    assert len(buffer) == stored
    assert buffer.storage.observation[:stored, 0].tolist() == list(range(stored))
    assert buffer.storage.action[:stored].tolist() == [t % 2 for t in range(stored)]
    assert buffer.storage.next_observation[:stored, 0].tolist() == list(range(n_step, 13))
    assert (buffer.storage.action_mask[:stored].numpy() == legal(range(stored), 3)).all()
    assert (buffer.storage.next_action_mask[:stored].numpy() == legal(range(n_step, 13), 3)).all()


@pytest.mark.parametrize("masks", [0, 3])
@pytest.mark.parametrize("capacity", [1, 2, 7, 16])
def test_the_ring_holds_the_latest_transitions_in_order(capacity, masks):
    buffer, kept, random, upcoming = make_buffer(capacity, masks=masks), [], rng(capacity), 0
    for _ in range(100):
        count = int(random.choice([0, 1, random.integers(capacity + 1), capacity]))
        buffer.add(rows(range(upcoming, upcoming + count), masks=masks))
        kept = (kept + list(range(upcoming, upcoming + count)))[-capacity:]
        upcoming += count
        assert len(buffer) == len(kept)
        arrays = buffer.state_arrays()
        assert arrays["count"] == upcoming
        oldest_first = np.roll(np.arange(len(kept)), -upcoming if len(kept) == capacity else 0)
        assert arrays["action"][oldest_first].tolist() == kept
        expected = rows(kept, masks=masks)
        assert set(arrays) == {"count", "first", *Transition._fields[: 7 if masks else 5]}
        for name in arrays.keys() - {"count", "first"}:
            assert (arrays[name][oldest_first] == getattr(expected, name).astype(arrays[name].dtype)).all()


def test_more_at_once_than_fit_are_refused():
    buffer = make_buffer(3)
    buffer.add(rows([1]))
    with pytest.raises(ValueError, match=r"data\.buffer\.capacity: 4 transitions at once do not fit into 3"):
        buffer.add(rows(range(4)))
    assert buffer.state_arrays()["action"].tolist() == [1]


@pytest.mark.parametrize("capacity", [0, -1])
def test_a_capacity_below_one_is_refused(capacity):
    with pytest.raises(ValueError, match=r"data\.buffer\.capacity must be at least 1"):
        ReplayBuffer(capacity)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (3,), (2, 4, 5)])
def test_observations_of_any_kind_are_stored_as_they_are_and_take_the_memory_that_was_foretold(dtype, shape):
    buffer = make_buffer(5, shape, dtype)
    numbers = [0, 1, 0, 1, 1, 0, 1] if dtype == "bool" else list(range(7))
    buffer.add(rows(numbers[:4], shape, dtype))
    buffer.add(rows(numbers[4:], shape, dtype))
    batch = buffer.sample(3, 4, rng())
    assert batch.transition.observation.shape == batch.transition.next_observation.shape == (3, 4, *shape)
    assert batch.transition.observation.dtype == batch.transition.next_observation.dtype == getattr(torch, dtype)
    assert set(batch.index.flatten().tolist()) <= {2, 3, 4, 5, 6}
    for index, observation in zip(
        batch.index.flatten().tolist(), batch.transition.observation.flatten(0, 1), strict=True
    ):
        assert (observation.numpy() == np.dtype(dtype).type(numbers[index])).all()
        assert (buffer.storage.observation[index % 5] == observation).all()
    assert buffer.num_bytes(shape, np.dtype(dtype)) == sum(field.nbytes for field in tensors(buffer.storage))


def test_an_image_costs_its_two_copies_and_sixteen_bytes():
    assert ReplayBuffer(1000).num_bytes((4, 84, 84), np.dtype("uint8")) == 1000 * (2 * 4 * 84 * 84 + 16)


@pytest.mark.parametrize("masks", [0, 1, 6])
def test_masks_cost_two_bytes_an_action_and_nothing_unless_used(masks):
    buffer = make_buffer(50, (3,), masks=masks)
    assert buffer.num_bytes((3,), np.dtype("float32"), masks) == 50 * (2 * 12 + 16 + 2 * masks)
    assert sum(field.nbytes for field in tensors(buffer.storage)) == 50 * (2 * 12 + 16 + 2 * masks)
    for mask in buffer.storage[5:]:
        assert mask is None if masks == 0 else (mask.shape, mask.dtype) == ((50, masks), torch.bool)


def test_memory_is_asked_for_with_the_masks(monkeypatch):
    asked = []
    monkeypatch.setattr("lightning_dqn.experience.rows.check_fits", lambda num_bytes, name: asked.append(num_bytes))
    make_buffer(50, (3,), masks=6)
    assert asked == [50 * (2 * 12 + 16 + 2 * 6)]


def test_a_buffer_with_masks_takes_no_transition_without():
    buffer = make_buffer(3, masks=2)
    with pytest.raises(AssertionError, match="this buffer stores action masks"):
        buffer.add(rows([1]))
    assert len(buffer) == 0


def test_allocating_again_without_masks_leaves_them_out():
    buffer = make_buffer(3, masks=2)
    buffer.allocate((2,), np.dtype("float32"))
    buffer.add(rows([1]))
    assert buffer.sample(1, 1, rng()).transition[5:] == (None, None)


def test_observations_without_a_torch_dtype_are_refused():
    with pytest.raises(ValueError, match=r"data\.env_id: observations of dtype complex64"):
        ReplayBuffer(3).allocate((2,), np.dtype("complex64"))


def test_a_sample_has_the_shapes_and_dtypes_of_a_batch():
    buffer = make_buffer(10)
    buffer.add(rows(range(10)))
    batch = buffer.sample(3, 4, rng())
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
    assert (batch.weight == 1).all()


@pytest.mark.parametrize("masks", [0, 3])
def test_the_fields_of_a_sampled_row_belong_together_and_stand_at_its_index(masks):
    buffer = make_buffer(10, masks=masks)
    buffer.add(rows(range(4), masks=masks))
    buffer.add(rows(range(4, 13), masks=masks))
    batch = buffer.sample(20, 5, rng())
    number = batch.transition.action
    assert (batch.transition.observation == number[..., None]).all()
    assert (batch.transition.next_observation == number[..., None] + 1).all()
    assert (batch.transition.reward == number / 2).all()
    assert (batch.transition.discount == number / 1024).all()
    if masks:
        flat = number.flatten().numpy()
        assert (batch.transition.action_mask.flatten(0, 1).numpy() == legal(flat, masks)).all()
        assert (batch.transition.next_action_mask.flatten(0, 1).numpy() == legal(flat + 1, masks)).all()
    # the row stands in the slot of its name, which is its place in the order of all ever stored
    assert (buffer.storage.action[batch.index % 10] == number).all()
    assert (batch.index == number).all()


@pytest.mark.parametrize("capacity", [1, 3, 7])
def test_a_name_is_never_given_twice_and_always_that_of_the_latest_transition_in_its_slot(capacity):
    buffer, random, stored = make_buffer(capacity), rng(capacity), 0
    for _ in range(60):
        count = int(random.integers(capacity + 1))
        buffer.add(rows(range(stored, stored + count)))
        stored += count
        if stored:
            batch = buffer.sample(8, 4, random)
            assert (batch.index == batch.transition.action).all()
            assert ((batch.index >= stored - capacity) & (batch.index < stored)).all()


def test_changing_a_sample_changes_nothing_stored():
    buffer = make_buffer(6, masks=3)
    buffer.add(rows(range(6), masks=3))
    before = [field.clone() for field in buffer.storage]
    batch = buffer.sample(2, 30, rng())
    for field in batch.transition:
        field.zero_()
    assert all(torch.equal(field, kept) for field, kept in zip(buffer.storage, before, strict=True))


def test_what_is_stored_later_does_not_change_a_sample():
    buffer = make_buffer(3)
    buffer.add(rows([1, 2, 3]))
    batch = buffer.sample(1, 30, rng())
    buffer.add(rows([7, 8, 9]))
    assert set(batch.transition.action.flatten().tolist()) == {1, 2, 3}


def test_every_transition_is_drawn_equally_often():
    buffer = make_buffer(50)
    buffer.add(rows(range(50)))
    buffer.add(rows(range(50, 80)))
    # the first 30 have been overwritten: the names are 30 to 79
    drawn = torch.bincount(buffer.sample(500, 100, rng()).index.flatten() - 30, minlength=50)
    assert len(drawn) == 50
    chi2 = float(((drawn - 1000) ** 2 / 1000).sum())
    assert 15 < chi2 < 85.4  # 49 degrees of freedom: below 85.4 with probability .999


def test_rows_that_were_never_written_are_never_drawn():
    buffer = make_buffer(100)
    buffer.storage.action.fill_(-1)
    buffer.add(rows(range(7)))
    actions = buffer.sample(100, 50, rng()).transition.action
    assert set(actions.flatten().tolist()) == set(range(7))


def test_an_empty_buffer_says_what_is_missing():
    with pytest.raises(RuntimeError, match="the replay buffer is empty: an ExperienceCollector"):
        make_buffer(3).sample(1, 1, rng())


def test_a_buffer_without_storage_says_so():
    with pytest.raises(RuntimeError, match="no storage yet"):
        ReplayBuffer(3).add(rows([1]))


def test_allocating_again_empties_the_buffer():
    buffer = make_buffer(3)
    buffer.add(rows([1, 2]))
    buffer.allocate((2,), np.dtype("float32"))
    assert len(buffer) == 0
    buffer.add(rows([5]))
    assert buffer.state_arrays()["action"].tolist() == [5]


@pytest.mark.parametrize("masks", [0, 3])
@pytest.mark.parametrize("count", [0, 2, 5, 8, 10, 13])
def test_a_restored_buffer_goes_on_as_the_original_would(count, masks):
    buffer, copy = make_buffer(5, masks=masks), make_buffer(5, masks=masks)
    for number in range(count):
        buffer.add(rows([number], masks=masks))
    copy.load_state_arrays({name: array.copy() for name, array in buffer.state_arrays().items()})
    for more in ([], [100], [101, 102, 103]):
        buffer.add(rows(more, masks=masks))
        copy.add(rows(more, masks=masks))
        assert len(copy) == len(buffer)
        for name, array in buffer.state_arrays().items():
            assert (copy.state_arrays()[name] == array).all()
    if count:
        assert torch.equal(copy.sample(3, 4, rng(1)).index, buffer.sample(3, 4, rng(1)).index)


@pytest.mark.parametrize(
    ("capacity", "shape", "dtype", "masks"),
    [
        (5, (3,), "float32", 3),
        (5, (2,), "float64", 3),
        (4, (2,), "float32", 3),
        (9, (2,), "float32", 3),
        (5, (2,), "float32", 4),
    ],
)
def test_state_of_another_kind_of_buffer_is_refused_and_nothing_changes(capacity, shape, dtype, masks):
    buffer, other = make_buffer(5, masks=3), make_buffer(capacity, shape, dtype, masks)
    buffer.add(rows(range(5), masks=3))
    buffer.add(rows(range(5, 7), masks=3))
    other.add(rows([1, 2], shape, dtype, masks))
    before = {name: array.copy() for name, array in other.state_arrays().items()}
    with pytest.raises(ValueError, match=r"data\.buffer"):
        other.load_state_arrays({name: array.copy() for name, array in buffer.state_arrays().items()})
    after = other.state_arrays()
    assert all((after[name] == array).all() for name, array in before.items())


@pytest.mark.parametrize(
    ("missing", "named"),
    [
        (["action_mask", "next_action_mask"], "action_mask, next_action_mask"),
        (["count"], "count"),
        (["reward"], "reward"),
    ],
)
def test_saved_replay_that_lacks_something_is_refused_by_name_and_nothing_changes(missing, named):
    buffer, other = make_buffer(5, masks=3), make_buffer(5, masks=3)
    buffer.add(rows(range(5), masks=3))
    other.add(rows([1, 2], masks=3))
    arrays = {name: array.copy() for name, array in buffer.state_arrays().items() if name not in missing}
    with pytest.raises(ValueError, match=rf"^data\.buffer: the saved replay has no {named}$"):
        other.load_state_arrays(arrays)
    assert other.state_arrays()["action"].tolist() == [1, 2]


def test_uniform_replay_does_not_care_for_priorities():
    buffer = make_buffer(5)
    buffer.add(rows(range(5)))
    before = buffer.sample(2, 3, rng())
    buffer.update_priorities(before.index, torch.full((2, 3), 1e6))
    assert torch.equal(buffer.sample(2, 3, rng()).index, before.index)


# -- the dataset -------------------------------------------------------------------------------------------------------


def make_dataset(buffer, iterations=5):
    return ReplayDataset(buffer, batch_size=4, gradient_steps=3, iterations_per_epoch=iterations, rng=rng(3))


def test_the_length_of_a_dataset_is_the_iterations_of_an_epoch():
    assert len(make_dataset(make_buffer(5), iterations=11)) == 11


def test_iterating_again_goes_on_rather_than_starting_anew():
    buffer = make_buffer(50)
    buffer.add(rows(range(50)))
    one, other = make_dataset(buffer), make_dataset(buffer)
    iterator = iter(one)
    through = [next(iterator).index for _ in range(4)]
    again = [next(iter(other)).index for _ in range(4)]
    assert all(torch.equal(a, b) for a, b in zip(through, again, strict=True))
    assert not torch.equal(through[0], through[1])


def test_batches_are_drawn_from_what_is_stored_at_that_moment():
    buffer = make_buffer(50)
    buffer.add(rows([1]))
    iterator = iter(make_dataset(buffer))
    assert set(next(iterator).transition.action.flatten().tolist()) == {1}
    buffer.allocate((2,), np.dtype("float32"))
    buffer.add(rows([2]))
    assert set(next(iterator).transition.action.flatten().tolist()) == {2}


@pytest.mark.parametrize("clock", [None, [7, 300]])
def test_every_draw_is_told_the_time_at_that_moment(clock):
    class Asked(ReplayBuffer):
        def sample(self, num_updates, batch_size, rng, env_steps=0):
            times.append(env_steps)

    times = []
    keywords = {} if clock is None else {"clock": iter(clock).__next__}
    iterator = iter(ReplayDataset(Asked(5), 4, 3, 5, rng(), **keywords))
    next(iterator)
    next(iterator)
    assert times == (clock or [0, 0])


@pytest.mark.filterwarnings("ignore")
def test_a_worker_process_is_refused_with_a_message_that_reaches_the_user():
    buffer = make_buffer(5)
    buffer.add(rows([1]))
    with pytest.raises(RuntimeError, match="num_workers must be 0"):
        next(iter(DataLoader(make_dataset(buffer), batch_size=None, num_workers=1)))


def test_it_counts_what_was_ever_stored():
    buffer = ReplayBuffer(3)
    buffer.allocate((1,), np.dtype(np.float32))
    assert buffer.count == 0
    seen = np.zeros((2, 1), np.float32)
    for stored in (2, 4, 6):
        buffer.add(Transition(seen, np.zeros(2, np.int64), np.zeros(2), np.zeros(2), seen))
        assert (buffer.count, len(buffer)) == (stored, min(stored, 3))


def test_only_a_buffer_that_takes_priorities_has_them():
    assert not ReplayBuffer(10).has_priorities
    assert PrioritizedReplayBuffer(10).has_priorities

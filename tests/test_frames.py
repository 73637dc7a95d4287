from itertools import product

import numpy as np
import pytest
import torch

from lightning_dqn import PrioritizedReplayBuffer, ReplayBuffer, SharedFrames, Transition
from lightning_dqn.experience.n_step import NStepAccumulator
from lightning_dqn.experience.rows import DeviceRows, Place
from tests.environments import Film, seeded

BUFFERS = {"uniform": ReplayBuffer, "prioritized": PrioritizedReplayBuffer}
SHAPE, BYTE = (4, 84, 84), np.dtype("uint8")


class Recorder:
    """Steps environments, fills a buffer as the collector does, and keeps every transition as it was seen."""

    def __init__(self, buffer, num_envs, n_step, place=Place(), seed=0, **film):
        self.envs = seeded(Film, num_envs, seeds=range(1000 * seed, 1000 * seed + 100_000), **film)
        space = self.envs.envs.single_observation_space
        self.buffer = buffer
        buffer.allocate(space.shape, space.dtype, place=place)
        if place.device is not None:  # a tensor on the CPU stands in for one on an accelerator
            frames = buffer.observations.frames
            buffer.observations.frames = DeviceRows(torch.from_numpy(frames.array))
        self.windows, self.whole = (NStepAccumulator(num_envs, n_step, 0.9) for _ in range(2))
        self.seen = []
        self.rng = np.random.default_rng(seed)
        self.observation = self.envs.reset()
        self.reference = buffer.remember(self.observation)

    def step(self):
        action = self.rng.integers(2, size=self.envs.num_envs)
        step = self.envs.step(action)
        following = self.buffer.remember(step.next_observation)
        self.buffer.add(self.windows.add(self.reference, action, *step.outcome, following, step.valid))
        whole = self.whole.add(self.observation, action, *step.outcome, step.next_observation, step.valid)
        self.seen += [Transition(*fields) for fields in zip(*whole[:5], strict=True)]
        starts = step.observation is not step.next_observation
        self.reference = self.buffer.remember(step.observation, step.done) if starts else following
        self.observation = step.observation

    def check(self, rng):
        """Draws are those that are kept, each as it was seen, bit for bit."""
        batch = self.buffer.sample(2, 16, rng)
        names = batch.index.flatten().tolist()
        kept = range(len(self.seen) - len(self.buffer), len(self.seen))
        assert set(names) <= set(kept)
        for i, name in enumerate(names):
            for drawn, seen in zip(batch.transition[:5], self.seen[name][:5], strict=True):
                row = drawn.flatten(0, 1)[i].numpy()
                assert row.dtype == (np.float32 if seen.dtype == np.float64 else seen.dtype)
                assert (row == seen.astype(row.dtype)).all()
        return names


@pytest.mark.parametrize("place", ["memory", "disk", "device"])
@pytest.mark.parametrize(("num_envs", "n_step", "sampling"), product([1, 8], [1, 3], BUFFERS))
@pytest.mark.parametrize("film", [{}, {"padding": "black", "channels": 2}], ids=["repeated", "black"])
def test_every_stack_drawn_is_the_one_that_was_seen(tmp_path, place, num_envs, n_step, sampling, film):
    where = {"memory": Place(), "disk": Place(tmp_path), "device": Place(device=torch.device("cpu"))}[place]
    buffer = BUFFERS[sampling](capacity=50, observations=SharedFrames(4, spare_frames=150))
    recorder = Recorder(buffer, num_envs, n_step, where, **film)
    rng, drawn = np.random.default_rng(1), []
    for step in range(400 // num_envs):  # many times around both rings
        recorder.step()
        if len(buffer) and step % 3 == 0:
            drawn += recorder.check(rng)
            buffer.update_priorities(torch.tensor(drawn[-32:]), torch.from_numpy(rng.random(32)))
    assert len(buffer) == 50, "the spare frames suffice for these episodes"
    assert max(drawn) > 300
    assert len(set(drawn)) > 150


@pytest.mark.parametrize("sampling", BUFFERS)
@pytest.mark.parametrize(("num_envs", "n_step"), [(1, 3), (3, 1), (3, 3)])
def test_where_frames_are_short_the_oldest_transitions_go_first(sampling, num_envs, n_step):
    # episodes of one to three steps: three or more frames for each transition
    buffer = BUFFERS[sampling](capacity=60, observations=SharedFrames(4, spare_frames=10))
    recorder = Recorder(buffer, num_envs, n_step, padding="black", longest=3)
    rng, sizes = np.random.default_rng(1), []
    for _ in range(300):
        recorder.step()
        if len(buffer):
            recorder.check(rng)
            sizes.append(len(buffer))
    assert 5 < min(sizes[50:]) <= max(sizes[50:]) < 60
    if sampling == "prioritized":
        names = np.arange(len(recorder.seen) - 60, len(recorder.seen))
        alive = buffer.tree.priorities[names % 60] > 0
        assert alive.tolist() == (names >= len(recorder.seen) - len(buffer)).tolist()
        # a priority for one that is gone early is dropped
        buffer.update_priorities(torch.from_numpy(names[:1]), torch.tensor([5.0]))
        assert buffer.tree.priorities[names[0] % 60] == 0


def test_draws_are_those_of_a_buffer_that_keeps_observations_whole():
    batches = []
    for observations in (None, SharedFrames(4, 200)):
        buffer = PrioritizedReplayBuffer(40, observations=observations)
        recorder = Recorder(buffer, 4, 3)
        for _ in range(30):
            recorder.step()
        batches.append(buffer.sample(3, 8, np.random.default_rng(2)))
    for whole, shared in zip(batches[0].transition[:5], batches[1].transition[:5], strict=True):
        assert torch.equal(whole, shared)
    assert torch.equal(batches[0].index, batches[1].index)


def test_a_frame_is_stored_once():
    storage = SharedFrames(3)
    storage.allocate(10, (3, 2, 2), BYTE, Place())
    picture = [np.full((2, 2), value, np.uint8) for value in range(9)]

    def stacks(*rows):
        return np.array([[picture[value] for value in row] for row in rows])

    assert storage.remember(stacks([1, 1, 1], [0, 0, 2])).tolist() == [[0, 0, 0], [1, 1, 2]]
    assert storage.remember(stacks([1, 1, 3], [0, 2, 4])).tolist() == [[0, 0, 3], [1, 2, 4]]
    # a picture that stays is a new frame; an episode that starts shares nothing with the one before
    assert storage.remember(stacks([1, 3, 3], [5, 5, 5])).tolist() == [[0, 3, 5], [6, 6, 6]]
    # of the others nothing is noted
    assert storage.remember(stacks([7, 8, 7], [0, 0, 0]), np.array([True, False])).tolist() == [[7, 8, 9], [6, 6, 6]]
    assert storage.remember(stacks([8, 7, 1], [5, 5, 6])).tolist() == [[8, 9, 10], [6, 6, 11]]
    assert storage.frames.numpy(0, 12)[:, 0, 0, 0].tolist() == [1, 0, 2, 3, 4, 3, 5, 7, 8, 7, 1, 6]


def test_images_that_are_not_stacked_are_shared_between_neighbours():
    buffer = ReplayBuffer(50, SharedFrames(1, 100))
    recorder = Recorder(buffer, 2, 1, stack_size=1, channels=4, dtype="bool")
    for _ in range(60):
        recorder.step()
        recorder.check(np.random.default_rng(0))
    assert buffer.sample(1, 1, np.random.default_rng(0)).transition.observation.dtype == torch.bool
    episodes = sum(not transition.discount or len(transition) == 0 for transition in recorder.seen)
    frames = int(buffer.state_arrays()["frame_count"][0])
    assert 120 + episodes <= frames < 2 * 120


def test_a_million_atari_transitions_take_seven_gigabytes():
    for buffer in BUFFERS.values():
        assert buffer(1_000_000, observations=SharedFrames()).num_bytes(SHAPE, BYTE) <= 7.2e3 * 1_000_000


def test_the_bytes_foretold_are_those_that_are_taken():
    storage = SharedFrames(4, spare_frames=7)
    placed, in_memory = storage.num_bytes(20, (8, 3, 5), BYTE)
    storage.allocate(20, (8, 3, 5), BYTE, Place())
    assert placed == storage.frames.array.nbytes == 27 * 30
    assert in_memory == 20 * 8 * 8


@pytest.mark.parametrize("sampling", BUFFERS)
@pytest.mark.parametrize(("steps", "spare"), [(3, 100), (60, 100), (60, 10)])
def test_what_is_saved_comes_back(sampling, steps, spare):
    def make():
        return BUFFERS[sampling](30, observations=SharedFrames(4, spare))

    recorder = Recorder(make(), 3, 3, longest=4)
    for _ in range(steps):
        recorder.step()
    arrays = {name: array.copy() for name, array in recorder.buffer.state_arrays().items()}
    restored = make()
    restored.allocate((4, 3, 5), BYTE)
    restored.load_state_arrays(arrays)
    for name, array in restored.state_arrays().items():
        assert (array == arrays[name]).all()
        assert array.dtype == arrays[name].dtype
    for buffer in (recorder.buffer, restored):
        buffer.drawn = buffer.sample(2, 16, np.random.default_rng(3))
    for saved, again in zip(recorder.buffer.drawn.transition[:5], restored.drawn.transition[:5], strict=True):
        assert torch.equal(saved, again)
    # and goes on: what is seen next is not taken for what was seen last
    recorder.buffer = restored
    recorder.reference = restored.remember(recorder.observation)
    recorder.windows.clear()
    recorder.whole.clear()
    for _ in range(40):
        recorder.step()
        recorder.check(np.random.default_rng(4))


@pytest.mark.parametrize(
    ("saved", "said"),
    [
        ({"frames": None}, "the saved replay has no frames"),
        ({"frame_names": None}, "the saved replay has no frame_names"),
        ({"frame_count": None}, "the saved replay has no frame_count"),
        ({"frames": np.zeros((9, 1, 3, 6), np.uint8)}, r"the saved frames is \(9, 1, 3, 6\)"),
        ({"frame_names": np.zeros((3, 2, 2), np.int64)}, r"the saved frame_names is \(3, 2, 2\)"),
    ],
)
def test_what_does_not_fit_is_refused_and_nothing_changes(saved, said):
    recorder = Recorder(ReplayBuffer(30, SharedFrames(4, 30)), 1, 1)
    for _ in range(3):
        recorder.step()
    arrays = {name: array.copy() for name, array in recorder.buffer.state_arrays().items()} | saved
    other = Recorder(ReplayBuffer(30, SharedFrames(4, 30)), 1, 1, seed=5)
    other.step()
    with pytest.raises(ValueError, match=r"^data\.buffer: " + said):
        other.buffer.load_state_arrays({name: array for name, array in arrays.items() if array is not None})
    other.check(np.random.default_rng(0))


@pytest.mark.parametrize(
    ("stack_size", "shape", "dtype", "said"),
    [
        (4, (4, 84, 84), "float32", r"unsigned bytes or booleans, but the observations are float32"),
        (4, (4,), "uint8", r"images \(channels, height, width\), but the observations are \(4,\)"),
        (4, (84, 84, 4), "uint8", r"channels come first.*\(84, 84, 4\)"),
        (1, (10, 10, 4), "bool", r"channels come first.*\(10, 10, 4\)"),
        (3, (4, 84, 84), "uint8", r"stack_size: 4 channels are no stack of 3 frames"),
    ],
)
def test_what_are_no_images_is_refused(stack_size, shape, dtype, said):
    buffer = ReplayBuffer(10, SharedFrames(stack_size))
    with pytest.raises(ValueError, match=r"^data\.buffer\.observations.*" + said):
        buffer.allocate(shape, np.dtype(dtype))


@pytest.mark.parametrize(("arguments", "field"), [((0,), "stack_size"), ((4, -1), "spare_frames")])
def test_arguments_out_of_range_are_refused(arguments, field):
    with pytest.raises(ValueError, match=rf"data\.buffer\.observations\.{field}"):
        SharedFrames(*arguments)


def test_too_few_frames_for_the_open_windows_are_not_overlooked():
    recorder = Recorder(ReplayBuffer(12, SharedFrames(4, 0)), 4, 3)
    run = (recorder.step() for _ in range(10))
    with pytest.raises(ValueError, match=r"data\.buffer\.observations\.spare_frames: 12 frames are not enough"):
        list(run)


def test_a_history_shares_frames_as_if_it_had_been_seen_step_by_step():
    shape = (2, 1, 3)
    step_by_step, at_once = ReplayBuffer(20, SharedFrames(2, 10)), ReplayBuffer(20, SharedFrames(2, 10))
    for buffer in (step_by_step, at_once):
        buffer.allocate(shape, BYTE)
    frames = np.random.default_rng(0).integers(256, size=(2, 9, *shape[1:]), dtype=np.uint8)
    # the second of two environments begins a new episode after the third moment
    moments = [([0, 1], [0, 0]), ([0, 1], [1, 1]), ([0, 1], [2, 2]), ([1], [5]), ([0, 1], [3, 6])]
    shown = np.zeros((2, *shape), np.uint8)
    history, of, references = [], [], []
    for envs, times in moments:
        for env, time in zip(envs, times, strict=True):
            shown[env] = frames[env, time : time + 2]
            history.append(shown[env].copy())
        of += envs
        where = np.isin(np.arange(2), envs)
        references.append(step_by_step.remember(shown, where)[envs])
    for part in (slice(0, 4), slice(4, 9)):
        named = at_once.remember_history(np.stack(history)[part], np.array(of)[part], 2)
        assert named.tolist() == np.concatenate(references)[part].tolist()
    assert at_once.observations.frames.count == step_by_step.observations.frames.count

import numpy as np
import pytest

from lightning_dqn import ObservationStorage, WholeObservations
from lightning_dqn.experience.observations import check_same_kind
from lightning_dqn.experience.rows import Place


def test_observations_are_their_own_references_and_come_back_by_slot():
    storage = WholeObservations()
    assert isinstance(storage, ObservationStorage)
    storage.allocate(4, (2,), np.dtype("float32"), Place())
    seen = np.arange(12, dtype=np.float32).reshape(6, 2)
    assert storage.remember(seen) is seen
    storage.put(0, seen[:3], seen[3:])
    storage.put(3, seen[:2], seen[4:])  # the second of them goes to the front
    before, after = storage.take(np.array([0, 1, 3]))
    assert before.tolist() == [[2, 3], [2, 3], [0, 1]]
    assert after.tolist() == [[10, 11], [8, 9], [8, 9]]
    assert storage.oldest_whole(2, 5) == 2


def test_bytes_are_those_of_two_observations_a_transition():
    assert WholeObservations().num_bytes(10, (4, 3), np.dtype("float32")) == (960, 0)


@pytest.mark.parametrize(
    ("array", "said"),
    [
        (None, r"^data\.buffer: the saved replay has no observation$"),
        (
            np.zeros((2, 4), np.float32),
            r"^data\.buffer: the saved observation is \(2, 4\) float32, .*\(2, 3\) float32",
        ),
        (np.zeros((2, 3), np.float64), r"^data\.buffer: the saved observation is \(2, 3\) float64"),
    ],
)
def test_saved_arrays_of_another_kind_are_refused(array, said):
    arrays = {} if array is None else {"observation": array}
    with pytest.raises(ValueError, match=said):
        check_same_kind("observation", arrays, (2, 3), np.dtype("float32"))
    check_same_kind("observation", {"observation": np.zeros((2, 3), np.float32)}, (2, 3), np.dtype("float32"))


class Noted(WholeObservations):
    """Refers to observations by when and where they were noted."""

    def __init__(self):
        self.noted = []

    def remember(self, observation, where=None):
        self.noted.append((observation.copy(), where.copy()))
        return np.stack([np.full(len(observation), len(self.noted)), np.arange(len(observation))], axis=1)

    def remember_history(self, *history):
        return ObservationStorage.remember_history(self, *history)


def test_a_history_is_noted_moment_by_moment():
    storage = Noted()
    env = np.array([2, 3, 2, 3, 3, 2, 3, 2])
    observation = np.arange(16, dtype=np.float32).reshape(8, 2)
    references = storage.remember_history(observation, env, 5)
    assert references.tolist() == [[1, 2], [1, 3], [2, 2], [2, 3], [3, 3], [4, 2], [4, 3], [5, 2]]
    for (moment, place), seen in zip(references.tolist(), observation, strict=True):
        shown, where = storage.noted[moment - 1]
        assert shown.shape == (5, 2)
        assert shown[place].tolist() == seen.tolist()
        assert where[place]
    assert [np.flatnonzero(where).tolist() for _, where in storage.noted] == [[2, 3], [2, 3], [3], [2, 3], [2]]


def test_whole_observations_are_their_own_history():
    seen = np.arange(6, dtype=np.float32).reshape(3, 2)
    assert WholeObservations().remember_history(seen, np.array([0, 1, 0]), 2) is seen

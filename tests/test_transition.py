"""The two records that cross borders."""

import pytest
import torch
from lightning.fabric.utilities import move_data_to_device

from lightning_dqn.transition import ReplayBatch, Transition


def make_batch(num_updates=3, batch_size=2):
    """A batch in which every number says where it stands: 100 * field + 10 * update + sample."""

    def numbers(field, dtype=torch.float32):
        update, sample = torch.arange(num_updates), torch.arange(batch_size)
        return (100 * field + 10 * update[:, None] + sample).to(dtype)

    observation = numbers(1, torch.uint8).unsqueeze(-1).expand(-1, -1, 4)
    transition = Transition(observation, numbers(2, torch.int64), numbers(3), numbers(4), observation + 1)
    return ReplayBatch(transition, numbers(5, torch.int64), numbers(6))


def test_the_records_have_these_fields_in_this_order():
    assert Transition._fields == ("observation", "action", "reward", "discount", "next_observation")
    assert ReplayBatch._fields == ("transition", "index", "weight")


def test_fields_go_by_name_and_by_position():
    transition, index, weight = make_batch()

    assert transition.reward[2].tolist() == [320, 321]
    assert [field.shape for field in transition] == [(3, 2, 4), (3, 2), (3, 2), (3, 2), (3, 2, 4)]
    assert index[0].tolist() == [500, 501]
    assert weight[1].tolist() == [610, 611]


def test_slicing_every_field_gives_a_minibatch():
    minibatch = Transition(*(field[1] for field in make_batch().transition))

    assert minibatch.action.tolist() == [210, 211]
    assert minibatch.discount.tolist() == [410, 411]
    assert torch.equal(minibatch.next_observation, minibatch.observation + 1)


def test_lightning_moves_every_tensor_and_keeps_the_records():
    moved = move_data_to_device(make_batch(), torch.device("meta"))

    assert type(moved) is ReplayBatch
    assert type(moved.transition) is Transition
    assert all(tensor.device.type == "meta" for tensor in (*moved.transition, moved.index, moved.weight))
    assert [field.dtype for field in moved.transition] == [
        torch.uint8,
        torch.int64,
        torch.float32,
        torch.float32,
        torch.uint8,
    ]


def test_moving_to_where_it_is_changes_nothing():
    batch = make_batch()
    moved = move_data_to_device(batch, torch.device("cpu"))

    pairs = zip(
        (*batch.transition, batch.index, batch.weight), (*moved.transition, moved.index, moved.weight), strict=True
    )
    assert all(torch.equal(before, after) for before, after in pairs)


def test_records_cannot_be_changed_in_place():
    with pytest.raises(AttributeError):
        make_batch().weight = torch.ones(3, 2)

"""The two records that cross borders."""

import pytest
import torch
from lightning.fabric.utilities import move_data_to_device

from lightning_dqn.transition import ReplayBatch, Transition


def make_batch(num_updates=3, batch_size=2, masks=0):
    """A batch in which every number says where it stands: 100 * field + 10 * update + sample.

    Masks, if there are any, have only one legal action at first and all but one after it.
    """

    def numbers(field, dtype=torch.float32):
        update, sample = torch.arange(num_updates), torch.arange(batch_size)
        return (100 * field + 10 * update[:, None] + sample).to(dtype)

    observation = numbers(1, torch.uint8).unsqueeze(-1).expand(-1, -1, 4)
    transition = Transition(observation, numbers(2, torch.int64), numbers(3), numbers(4), observation + 1)
    if masks:
        legal = (numbers(0, torch.int64) % masks)[..., None] == torch.arange(masks)
        transition = transition._replace(action_mask=legal, next_action_mask=~legal)
    return ReplayBatch(transition, numbers(5, torch.int64), numbers(6))


def tensors(batch):
    return [field for field in batch.transition if field is not None] + [batch.index, batch.weight]


def test_the_records_have_these_fields_in_this_order():
    assert Transition._fields == (
        "observation",
        "action",
        "reward",
        "discount",
        "next_observation",
        "action_mask",
        "next_action_mask",
    )
    assert ReplayBatch._fields == ("transition", "index", "weight")


def test_fields_go_by_name_and_by_position():
    transition, index, weight = make_batch(masks=5)

    assert transition.reward[2].tolist() == [320, 321]
    shapes = [(3, 2, 4), (3, 2), (3, 2), (3, 2), (3, 2, 4), (3, 2, 5), (3, 2, 5)]
    assert [field.shape for field in transition] == shapes
    assert index[0].tolist() == [500, 501]
    assert weight[1].tolist() == [610, 611]


def test_masks_are_left_out_unless_they_are_used():
    transition = make_batch().transition

    assert (transition.action_mask, transition.next_action_mask) == (None, None)
    assert make_batch(masks=2).transition.action_mask.dtype == torch.bool


@pytest.mark.parametrize("masks", [0, 5])
def test_slicing_every_field_gives_a_minibatch(masks):
    minibatch = make_batch(masks=masks).transition.map(lambda field: field[1])

    assert type(minibatch) is Transition
    assert minibatch.action.tolist() == [210, 211]
    assert minibatch.discount.tolist() == [410, 411]
    assert torch.equal(minibatch.next_observation, minibatch.observation + 1)
    if masks:
        assert minibatch.action_mask.int().argmax(dim=1).tolist() == [10 % 5, 11 % 5]
        assert torch.equal(minibatch.next_action_mask, ~minibatch.action_mask)
    else:
        assert minibatch[5:] == (None, None)


def test_a_function_is_mapped_over_every_field_in_order():
    seen = []
    Transition(1, 2, 3, 4, 5, None, 7).map(seen.append)

    assert seen == [1, 2, 3, 4, 5, 7]
    assert Transition(1, 2, 3, 4, 5, 6, None).map(str) == Transition("1", "2", "3", "4", "5", "6", None)


@pytest.mark.parametrize("masks", [0, 5])
def test_lightning_moves_every_tensor_and_keeps_the_records(masks):
    moved = move_data_to_device(make_batch(masks=masks), torch.device("meta"))

    assert type(moved) is ReplayBatch
    assert type(moved.transition) is Transition
    assert len(tensors(moved)) == (9 if masks else 7)
    assert all(tensor.device.type == "meta" for tensor in tensors(moved))
    assert [field.dtype for field in moved.transition if field is not None] == [
        torch.uint8,
        torch.int64,
        torch.float32,
        torch.float32,
        torch.uint8,
        *[torch.bool] * (2 if masks else 0),
    ]


@pytest.mark.parametrize("masks", [0, 5])
def test_moving_to_where_it_is_changes_nothing(masks):
    batch = make_batch(masks=masks)
    moved = move_data_to_device(batch, torch.device("cpu"))

    assert moved is batch


def test_what_is_partly_elsewhere_is_moved_as_a_whole():
    batch = make_batch(masks=5)
    elsewhere = batch._replace(transition=batch.transition.map(lambda field: field.to("meta")))
    mixed = batch._replace(weight=batch.weight.to("meta"))

    for parts in (elsewhere, mixed):
        assert all(tensor.device.type == "meta" for tensor in tensors(parts.to(torch.device("meta"))))


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no NVIDIA GPU")
def test_what_arrives_on_a_gpu_is_what_left():
    batch = make_batch(masks=5)
    moved = batch.to(torch.device("cuda", 0))

    assert all(tensor.device.type == "cuda" for tensor in tensors(moved))
    assert all(torch.equal(a, b.cpu()) for a, b in zip(tensors(batch), tensors(moved), strict=True))


def test_records_cannot_be_changed_in_place():
    with pytest.raises(AttributeError):
        make_batch().weight = torch.ones(3, 2)

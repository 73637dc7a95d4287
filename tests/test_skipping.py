import pytest

from lightning_dqn.learner.skipping import SkippedUpdates

NAN, INF = float("nan"), float("inf")


def test_all_are_counted_and_those_in_a_row_beside_them():
    skipped = SkippedUpdates()
    finite = [skipped.note(loss, most=3) for loss in (1.0, NAN, INF, 0.0, -INF)]
    assert finite == [True, False, False, True, False]
    assert (skipped.total, skipped.in_a_row) == (3, 1)


def test_too_many_in_a_row_are_refused_and_counted():
    skipped = SkippedUpdates()
    skipped.note(NAN, most=2)
    said = r"^model: the loss was not finite in 2 updates in a row, .*model\.max_skipped_updates.*learning rate"
    with pytest.raises(FloatingPointError, match=said):
        skipped.note(NAN, most=2)
    assert skipped.total == 2
    skipped.reset()
    assert (skipped.total, skipped.in_a_row) == (0, 0)
    assert skipped.note(NAN, most=2) is False


def test_counts_are_taken_over():
    one, other = SkippedUpdates(), SkippedUpdates()
    for loss in (NAN, 1.0, NAN, NAN):
        one.note(loss, most=9)
    other.load_state_dict(one.state_dict())
    assert other.state_dict() == one.state_dict() == {"total": 3, "in_a_row": 2}
    other.load_state_dict({})  # as of a checkpoint that is older than they are
    assert (other.total, other.in_a_row) == (0, 0)

"""Runs of several processes: one learner, whose ranks each have their own experience."""

import torch

from tests.ddp_runs import make, run


def equal(first, second):
    """Whether two runs came to the same tensors, bit for bit."""
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_two_ranks_are_one_learner_with_two_experiences(tmp_path):
    (first, second), said = run(tmp_path, ranks=2, noisy=True)
    assert equal(first["weights"], second["weights"])
    assert not equal(first["start"], first["weights"])
    # 64 before the first update, then 15 iterations of 8, half of it of each rank
    assert (first["env_steps"], second["env_steps"]) == (184, 184)
    assert (first["iterations"], first["gradient_steps"], first["size"]) == (15, 45, 92)
    assert first["metrics"]["env_steps"] == 184
    assert second["size"] == 92
    assert not torch.equal(first["buffer"]["observation"], second["buffer"]["observation"])
    assert not torch.equal(first["draw"], second["draw"])
    # metrics are of all, wherever they are read
    for name in ("val/return", "val/return_iqm", "train/loss", "collect/return", "collect/episode_length"):
        assert first["metrics"][name] == second["metrics"][name]
    assert "sync_dist" not in said
    # one process plays all nine episodes that two have shared out
    alone, model, data, _ = make(tmp_path, {"noisy": True})
    model.load_state_dict(first["weights"])
    (score,) = alone.validate(model, datamodule=data, verbose=False)
    assert {name: first["metrics"][name] for name in score if name != "env_steps"} == {
        name: value for name, value in score.items() if name != "env_steps"
    }
    assert {path.name for path in tmp_path.glob("replay/184/*")} == {"rank0", "rank1"}

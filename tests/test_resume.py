import threading

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_dqn import ExperienceCollector, ExperienceDataModule, PrioritizedReplayBuffer
from lightning_dqn.experience import segments, write_behind
from lightning_dqn.experience.checkpoint import load_snapshot
from lightning_dqn.resume import RunState
from tests.environments import Chain
from tests.runs import snapshot, steps_saved


def test_nothing_is_put_back_that_was_not_loaded():
    state = RunState()
    assert not state.is_loaded
    with pytest.raises(AssertionError, match="nothing was loaded"):
        state.put_back(ExperienceDataModule(Chain), None, None)


@pytest.mark.parametrize("save_replay", [True, False])
def test_the_replay_goes_where_the_full_checkpoints_go(make_trainer, make_model, tmp_path, save_replay):
    data = ExperienceDataModule(Chain, num_envs=2, learning_starts=8, batch_size=4, steps_per_epoch=16)
    weights = ModelCheckpoint(tmp_path / "weights", "best", monitor="val/return", save_weights_only=True)
    latest = ModelCheckpoint(tmp_path / "full", "latest", save_on_train_epoch_end=False)
    collector = ExperienceCollector(save_replay=save_replay)
    make_trainer(callbacks=[collector, weights, latest], enable_checkpointing=True).fit(make_model(data), data)
    assert (tmp_path / "full" / "latest.ckpt").is_file()
    assert not (tmp_path / "weights" / "replay").exists()
    assert (tmp_path / "full" / "replay").exists() == save_replay


# -- what is written while training goes on ----------------------------------------------------------------------------


@pytest.fixture
def small_segments(monkeypatch):
    monkeypatch.setattr(segments, "_SEGMENT_BYTES", 160)  # ten states of CartPole
    monkeypatch.setattr(write_behind, "_PAUSE", 0.002)


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "replay"]


class Watch(Callback):
    """Notes how many threads write while training goes on; may do something in the fourth iteration."""

    def __init__(self, act=lambda trainer: None):
        self.act, self.seen = act, []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.seen.append(len(threads()))
        if len(self.seen) == 4:
            self.act(trainer)


def make_data(capacity):
    buffer = PrioritizedReplayBuffer(capacity)
    return ExperienceDataModule(
        "CartPole-v1", num_envs=2, buffer=buffer, learning_starts=30, batch_size=4, steps_per_epoch=64, seed=0
    )


def fit(
    make_trainer,
    make_model,
    folder,
    max_epochs=1,
    savers=None,
    callbacks=(),
    save_replay=True,
    ckpt_path=None,
    capacity=70,
):
    data = make_data(capacity)
    savers = [ModelCheckpoint(folder, "latest", enable_version_counter=False)] if savers is None else savers
    collector = ExperienceCollector(save_replay=save_replay)
    trainer = make_trainer(
        max_epochs=max_epochs,
        callbacks=[collector, *callbacks, *savers],
        enable_checkpointing=bool(savers),
        limit_val_batches=0,
    )
    model = make_model(data)
    trainer.fit(model, data, ckpt_path=ckpt_path)
    return trainer, model, data


@pytest.mark.parametrize(
    ("savers", "save_replay", "expected"),
    [("full", True, 1), ("full", False, 0), ("weights", True, 0), ("none", True, 0)],
)
def test_there_is_a_thread_only_where_the_replay_is_going_to_be_saved(
    make_trainer, make_model, tmp_path, savers, save_replay, expected
):
    chosen = {"full": None, "weights": [ModelCheckpoint(tmp_path, "w", save_weights_only=True)], "none": []}[savers]
    watch = Watch()
    fit(make_trainer, make_model, tmp_path, savers=chosen, callbacks=[watch], save_replay=save_replay)
    assert watch.seen == [expected] * 4
    assert threads() == []
    assert not list(tmp_path.rglob("*.tmp"))


def test_iterations_without_a_step_have_replays_of_their_own(make_trainer, make_model, tmp_path):
    """Four environments and a step each iteration: only every fourth iteration takes one."""
    found = []

    class SaveTwice(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx in (1, 2):
                trainer.save_checkpoint(tmp_path / f"{batch_idx}.ckpt")
                arrays = {name: array.copy() for name, array in data.buffer.state_arrays().items()}
                found.append((data.env_steps, arrays, data.dataset.rng.bit_generator.state))

    buffer = PrioritizedReplayBuffer(70)
    data = ExperienceDataModule(
        "CartPole-v1",
        num_envs=4,
        train_frequency=1,
        buffer=buffer,
        learning_starts=8,
        batch_size=4,
        steps_per_epoch=12,
        seed=0,
    )
    make_trainer(callbacks=[ExperienceCollector(), SaveTwice()], limit_val_batches=0).fit(make_model(data), data)
    (steps, first, _), (later, second, generator) = found
    assert steps == later
    assert any(not np.array_equal(first[name], second[name]) for name in first)
    replay = torch.load(tmp_path / "2.ckpt", weights_only=True)["replay"]
    arrays, meta = load_snapshot(tmp_path / replay["name"] / "rank0")
    assert meta["rngs"]["replay"] == generator
    for name, array in second.items():
        if name in arrays:
            assert np.array_equal(arrays[name], array), name


def test_a_checkpoint_that_somebody_asks_for_begins_it_and_those_after_the_end_do_not(
    make_trainer, make_model, tmp_path, small_segments
):
    watch = Watch(lambda trainer: trainer.save_checkpoint(tmp_path / "mine.ckpt"))
    trainer, *_ = fit(make_trainer, make_model, tmp_path, max_epochs=2, savers=[], callbacks=[watch])
    assert watch.seen == [0] * 4 + [1] * 4
    trainer.save_checkpoint(tmp_path / "mine.ckpt")
    assert threads() == []
    assert steps_saved(tmp_path) == [94, 158]
    # the last was saved when everything had ended, and shares nothing
    assert {path.stat().st_nlink for path in snapshot(tmp_path, 158).iterdir()} == {1}


def test_however_a_fit_ends_the_thread_does_and_leaves_nothing(make_trainer, make_model, tmp_path, small_segments):
    class Stop(Exception):
        pass

    def fail(trainer):
        assert list((tmp_path / "replay").glob(".*.tmp"))
        raise Stop

    with pytest.raises(Stop):
        fit(make_trainer, make_model, tmp_path, callbacks=[Watch(fail)])
    assert threads() == []
    assert not list(tmp_path.rglob("*.tmp"))


@pytest.mark.usefixtures("small_segments")
def test_a_run_is_the_same_with_and_without_the_thread(make_trainer, make_model, tmp_path, monkeypatch):
    runs = []
    for name in ("with", "without"):
        if name == "without":
            monkeypatch.setattr(write_behind.WriteBehind, "_run", lambda *args: None)
        _, model, data = fit(make_trainer, make_model, tmp_path / name, max_epochs=3)
        arrays = data.buffer.state_arrays()
        runs.append((model.state_dict(), arrays, data.dataset.rng.bit_generator.state))
    (weights, arrays, draws), (other_weights, other_arrays, other_draws) = runs
    assert all(torch.equal(weights[name], other_weights[name]) for name in weights)
    assert all((arrays[name] == other_arrays[name]).all() for name in arrays)
    assert draws == other_draws


def inodes(folder):
    return {(path.name, path.stat().st_ino) for path in folder.iterdir()}


@pytest.mark.usefixtures("small_segments")
def test_a_run_that_goes_on_links_what_the_snapshot_had_that_it_came_from(make_trainer, make_model, tmp_path):
    fit(make_trainer, make_model, tmp_path, capacity=300)
    first, latest = inodes(snapshot(tmp_path, 94)), tmp_path / "latest.ckpt"
    fit(make_trainer, make_model, tmp_path, max_epochs=3, ckpt_path=latest, capacity=300)
    second, third = (inodes(snapshot(tmp_path, step)) for step in (158, 222))
    assert second.isdisjoint(first | third)
    # ninety states before and after are nine segments each, and actions, rewards and discounts a few
    assert len(third & first) >= 18
    _, _, data = fit(make_trainer, make_model, tmp_path, max_epochs=4, ckpt_path=latest, capacity=300)
    assert len(data.buffer) == 286


@pytest.mark.usefixtures("small_segments")
def test_what_an_earlier_fit_came_from_is_nothing_to_one_without_replay(make_trainer, make_model, tmp_path):
    fit(make_trainer, make_model, tmp_path / "a", capacity=300)
    data, collector = make_data(300), ExperienceCollector()
    model, saver = make_model(data), ModelCheckpoint(tmp_path / "b", "latest", enable_version_counter=False)
    kwargs = {"callbacks": [collector, saver], "enable_checkpointing": True, "limit_val_batches": 0}
    make_trainer(max_epochs=2, **kwargs).fit(model, data, ckpt_path=tmp_path / "a" / "latest.ckpt")
    weights = torch.load(tmp_path / "b" / "latest.ckpt", weights_only=True)
    for name in ("replay", "callbacks"):
        del weights[name]
    torch.save(weights, tmp_path / "bare.ckpt")
    make_trainer(max_epochs=4, **kwargs).fit(model, data, ckpt_path=tmp_path / "bare.ckpt")
    arrays, _ = load_snapshot(snapshot(tmp_path / "b", data.env_steps))
    for name, array in data.buffer.state_arrays().items():
        assert np.asarray(arrays[name]).tobytes() == array.tobytes()


# -- several runs in one folder ----------------------------------------------------------------------------------------


def fit_as(make_trainer, make_model, folder, name, max_epochs, resume=False, source=None):
    """Train a run that saves under a file name; return what its replay holds at the end."""
    saver = ModelCheckpoint(folder, name, enable_version_counter=False)
    ckpt_path = folder / f"{source or name}.ckpt" if resume else None
    _, model, data = fit(make_trainer, make_model, folder, max_epochs, [saver], ckpt_path=ckpt_path, capacity=300)
    return model.state_dict(), {key: array.copy() for key, array in data.buffer.state_arrays().items()}


def equal(one, other):
    return all(torch.equal(one[0][key], other[0][key]) for key in one[0]) and all(
        np.array_equal(one[1][key], other[1][key]) for key in one[1]
    )


def names_of(folder, name):
    """Return the snapshots that a checkpoint and the one before it need."""
    files = [folder / f"{name}.ckpt", folder / f"{name}.previous.ckpt"]
    return {torch.load(file, weights_only=True)["replay"]["name"] for file in files}


def test_two_runs_that_save_in_turns_into_one_folder_resume_exactly(make_trainer, make_model, tmp_path):
    alone = fit_as(make_trainer, make_model, tmp_path / "alone", "a", 6)
    together = tmp_path / "together"
    for epochs in (2, 4):
        for name in ("a", "b"):
            fit_as(make_trainer, make_model, together, name, epochs, resume=epochs > 2)
    assert len(list((together / "replay").iterdir())) == 4
    needed = names_of(together, "a") | names_of(together, "b")
    assert {f"replay/{path.name}" for path in (together / "replay").iterdir()} == needed
    for name in ("a", "b"):
        assert equal(fit_as(make_trainer, make_model, together, name, 6, resume=True), alone)


def test_a_run_that_resumes_under_another_file_name_leaves_the_first_runs_snapshots(make_trainer, make_model, tmp_path):
    fit_as(make_trainer, make_model, tmp_path, "a", 2)
    needed = names_of(tmp_path, "a")
    expected = fit_as(make_trainer, make_model, tmp_path, "b", 5, resume=True, source="a")
    assert names_of(tmp_path, "a") == needed
    assert all((tmp_path / name / "rank0" / "manifest.json").is_file() for name in needed)
    assert equal(fit_as(make_trainer, make_model, tmp_path, "a", 5, resume=True), expected)


def run_of(path):
    return torch.load(path, weights_only=True)["run"]["id"]


def test_a_run_keeps_its_id_when_it_resumes_or_is_fitted_again_and_another_has_its_own(
    make_trainer, make_model, tmp_path
):
    trainer, model, data = fit(make_trainer, make_model, tmp_path)
    first = run_of(tmp_path / "latest.ckpt")
    trainer.fit_loop.max_epochs = 2
    trainer.fit(model, data)
    assert run_of(tmp_path / "latest.ckpt") == first
    fit(make_trainer, make_model, tmp_path, max_epochs=3, ckpt_path=tmp_path / "latest.ckpt")
    assert run_of(tmp_path / "latest.ckpt") == first
    fit(make_trainer, make_model, tmp_path)
    assert run_of(tmp_path / "latest.ckpt") != first


def test_a_save_into_the_working_folder_leaves_what_is_in_replay(make_trainer, make_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "replay" / "notes").mkdir(parents=True)
    (tmp_path / "replay" / "notes" / "a.txt").write_text("mine")
    (tmp_path / "replay" / "empty").mkdir()
    watch = Watch(lambda trainer: trainer.save_checkpoint("mine.ckpt"))
    trainer, *_ = fit(make_trainer, make_model, ".", max_epochs=3, savers=[], callbacks=[watch])
    trainer.save_checkpoint("mine.ckpt")
    assert (tmp_path / "replay" / "notes" / "a.txt").read_text() == "mine"
    assert (tmp_path / "replay" / "empty").is_dir()

import json
import os
import resource
import shutil
import warnings
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.plugins.io import AsyncCheckpointIO

from lightning_dqn import DQNLightningModule, ExperienceDataModule, checkpoint_io
from lightning_dqn.checkpoint_file import CheckpointError, checksums_of, generations, previous_of, read_checkpoint
from lightning_dqn.checkpoint_io import (
    CrashSafeCheckpointIO,
    checkpoint_folders,
    full_checkpoint,
    install_checkpoint_io,
    newest_readable,
    written_checkpoint,
)
from lightning_dqn.files import unfinished


def state(value):
    return {
        "state_dict": {"w": torch.full((100,), float(value))},
        "epoch": value,
        "global_step": 10 * value,
        "hyper_parameters": {},
        "pytorch-lightning_version": "2.6.6",
    }


def flip(path, where=-1):
    content = bytearray(path.read_bytes())
    content[where] ^= 1
    path.write_bytes(content)


def names(folder):
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def saved(tmp_path):
    """A checkpoint, 2, and the one before, 1."""
    for value in (1, 2):
        CrashSafeCheckpointIO().save_checkpoint(state(value), tmp_path / "latest.ckpt")
    return tmp_path / "latest.ckpt"


# -- saving ------------------------------------------------------------------------------------------------------------


def test_a_checkpoint_its_checksums_and_the_one_before_are_left_and_nothing_else(saved):
    assert names(saved.parent) == ["latest.ckpt", "latest.ckpt.sha256", "latest.previous.ckpt"]
    assert [torch.load(path, weights_only=True)["epoch"] for path in generations(saved)] == [2, 1]
    CrashSafeCheckpointIO().save_checkpoint(state(3), saved)
    assert [read_checkpoint(path)["epoch"] for path in generations(saved)] == [3, 2]


def test_folders_are_made(tmp_path):
    CrashSafeCheckpointIO().save_checkpoint(state(1), tmp_path / "a" / "b" / "x.ckpt")
    assert CrashSafeCheckpointIO().load_checkpoint(tmp_path / "a" / "b" / "x.ckpt")["epoch"] == 1


@pytest.mark.parametrize("stop_at", range(1, 4))
def test_a_save_that_dies_before_any_of_its_renames_leaves_two_good_checkpoints(saved, monkeypatch, stop_at):
    replace, calls = os.replace, []

    def die(*args):
        calls.append(args)
        if len(calls) == stop_at:
            raise KeyboardInterrupt
        replace(*args)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", die)
        with pytest.raises(KeyboardInterrupt):
            CrashSafeCheckpointIO().save_checkpoint(state(3), saved)
    assert len(calls) == stop_at
    assert [read_checkpoint(path)["epoch"] for path in generations(saved)] in ([2, 1], [2, 2])


def test_without_hard_links_the_one_before_is_a_copy(saved, monkeypatch):
    def refuse(*args):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    CrashSafeCheckpointIO().save_checkpoint(state(3), saved)
    assert [read_checkpoint(path)["epoch"] for path in generations(saved)] == [3, 2]
    assert names(saved.parent) == ["latest.ckpt", "latest.ckpt.sha256", "latest.previous.ckpt"]


def test_a_damaged_checkpoint_does_not_become_the_one_before(saved):
    flip(saved, 700)
    CrashSafeCheckpointIO().save_checkpoint(state(3), saved)
    assert [read_checkpoint(path)["epoch"] for path in generations(saved)] == [3, 1]


def test_one_that_was_not_accepted_does_not_become_the_one_before(saved):
    io = CrashSafeCheckpointIO(lambda checkpoint, path: "no" if checkpoint["epoch"] == 2 else None)
    with pytest.warns(UserWarning, match="Taking the one before"):
        assert io.load_checkpoint(saved)["epoch"] == 1
    io.save_checkpoint(state(3), saved)
    assert [read_checkpoint(path)["epoch"] for path in generations(saved)] == [3, 1]


def test_leftovers_of_saves_that_were_killed_are_removed_by_the_next(saved):
    unfinished(saved).write_bytes(b"half")
    CrashSafeCheckpointIO().save_checkpoint(state(3), saved)
    assert names(saved.parent) == ["latest.ckpt", "latest.ckpt.sha256", "latest.previous.ckpt"]


def test_a_full_disk_is_a_warning_with_both_figures(saved, monkeypatch):
    before = {path: path.read_bytes() for path in saved.parent.iterdir()}
    monkeypatch.setattr(shutil, "disk_usage", lambda _: _Free())
    with pytest.warns(UserWarning, match=r"latest\.ckpt could not be saved.*needed: .* MiB, free: 0\.0 MiB"):
        CrashSafeCheckpointIO().save_checkpoint(state(3), saved)
    assert {path: path.read_bytes() for path in saved.parent.iterdir()} == before


class _Free:
    free = 0


def test_a_disk_that_fills_up_while_writing_is_a_warning_and_changes_nothing(saved):
    before = {path: path.read_bytes() for path in saved.parent.iterdir()}
    written = []
    large = state(3) | {"state_dict": {"w": torch.zeros(100_000)}}
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.warns(UserWarning, match=r"latest\.ckpt could not be saved.*File too large"):
            CrashSafeCheckpointIO(written=written.append).save_checkpoint(large, saved)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert {path: path.read_bytes() for path in saved.parent.iterdir()} == before
    assert written == []


def test_what_is_no_fault_of_the_disk_is_raised(tmp_path):
    with pytest.raises(Exception, match="pickle"):
        CrashSafeCheckpointIO().save_checkpoint(state(1) | {"f": lambda: 0}, tmp_path / "x.ckpt")
    assert names(tmp_path) == []


def test_whoever_asked_hears_of_what_was_written(tmp_path):
    written = []
    CrashSafeCheckpointIO(written=written.append).save_checkpoint(checkpoint := state(1), tmp_path / "x.ckpt")
    assert written == [checkpoint]


def test_options_of_storage_are_refused_as_lightning_does(tmp_path):
    with pytest.raises(TypeError, match="storage_options"):
        CrashSafeCheckpointIO().save_checkpoint(state(1), tmp_path / "x.ckpt", storage_options={})


def test_addresses_are_written_to_as_lightning_does():
    io, path = CrashSafeCheckpointIO(), "memory://somewhere/x.ckpt"
    io.save_checkpoint(state(1), path)
    assert TorchCheckpointIO().load_checkpoint(path, weights_only=True)["epoch"] == 1
    io.remove_checkpoint(path)
    with pytest.raises(FileNotFoundError):
        TorchCheckpointIO().load_checkpoint(path)


# -- removing ----------------------------------------------------------------------------------------------------------


def test_what_belongs_to_a_checkpoint_is_removed_with_it(saved):
    CrashSafeCheckpointIO().remove_checkpoint(saved)
    assert saved.exists()  # this run has saved nothing into the folder
    io = CrashSafeCheckpointIO()
    io.save_checkpoint(state(3), saved)
    io.remove_checkpoint(saved)
    assert names(saved.parent) == []


def test_remove_checkpoint_leaves_what_its_saves_did_not_write(tmp_path):
    io = CrashSafeCheckpointIO()
    io.save_checkpoint(state(1), tmp_path / "x.ckpt")
    (tmp_path / "x.previous.ckpt").write_text("mine")
    (tmp_path / "y.ckpt").mkdir()
    (tmp_path / "y.ckpt" / "mine.txt").touch()
    (tmp_path / "y.ckpt.sha256").mkdir()
    (tmp_path / "z.ckpt").touch()
    (tmp_path / "z.ckpt.sha256").write_text("mine")
    for name in ("x", "y", "z"):
        io.remove_checkpoint(tmp_path / f"{name}.ckpt")
    assert names(tmp_path) == ["x.previous.ckpt", "y.ckpt", "y.ckpt.sha256", "z.ckpt", "z.ckpt.sha256"]
    assert (tmp_path / "y.ckpt" / "mine.txt").exists()


def test_a_checkpoint_stays_when_what_was_to_replace_it_could_not_be_saved(tmp_path, monkeypatch):
    io, full = CrashSafeCheckpointIO(), False
    real = checkpoint_io.check_space

    def check_space(*args):
        if full:
            raise OSError(28, "No space left on device")
        real(*args)

    def replace(before, after):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            io.save_checkpoint(state(after), tmp_path / f"{after}.ckpt")
        io.remove_checkpoint(tmp_path / f"{before}.ckpt")

    monkeypatch.setattr(checkpoint_io, "check_space", check_space)
    io.save_checkpoint(state(1), tmp_path / "1.ckpt")
    full = True
    replace(1, 2)
    replace(2, 3)
    assert names(tmp_path) == ["1.ckpt", "1.ckpt.sha256"]
    full = False
    replace(3, 4)
    assert names(tmp_path) == ["4.ckpt", "4.ckpt.sha256"]


# -- loading -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "gone"])
def test_the_one_before_is_taken_where_the_last_is_damaged(saved, damage):
    {
        "flip": lambda: flip(saved, 800),
        "cut": lambda: os.truncate(saved, 900),
        "empty": lambda: os.truncate(saved, 0),
        "gone": saved.unlink,
    }[damage]()
    with pytest.warns(UserWarning, match=r"Taking the one before, .*latest\.previous\.ckpt \(epoch 1, step 10\)"):
        assert CrashSafeCheckpointIO().load_checkpoint(saved)["epoch"] == 1


def test_what_is_whole_is_loaded_without_a_word(saved, recwarn):
    assert CrashSafeCheckpointIO().load_checkpoint(saved)["epoch"] == 2
    assert CrashSafeCheckpointIO().load_checkpoint(str(previous_of(saved)))["epoch"] == 1
    assert not recwarn.list


def test_where_both_are_damaged_one_line_says_so(saved):
    flip(saved)
    flip(previous_of(saved))
    with pytest.raises(
        CheckpointError, match=r"^ckpt_path: .*latest\.ckpt cannot be loaded.*latest\.previous\.ckpt"
    ) as e:
        CrashSafeCheckpointIO().load_checkpoint(saved)
    assert "\n" not in str(e.value)


def test_the_last_is_taken_where_none_is_accepted(saved, recwarn):
    assert CrashSafeCheckpointIO(lambda *_: "no replay").load_checkpoint(saved)["epoch"] == 2
    assert not recwarn.list


@pytest.mark.parametrize("names_file", ["gone", "nonsense", "of the future"])
def test_without_readable_checksums_a_checkpoint_is_loaded_as_it_is(saved, names_file):
    sums = saved.with_name("latest.ckpt.sha256")
    if names_file == "gone":
        sums.unlink()
    else:
        sums.write_text("{" if names_file == "nonsense" else json.dumps({"format_version": 2, "sha256": {}}))
    assert CrashSafeCheckpointIO().load_checkpoint(saved)["epoch"] == 2
    CrashSafeCheckpointIO().save_checkpoint(state(3), saved)
    assert [read_checkpoint(path)["epoch"] for path in generations(saved)] == [3, 2]


def test_a_link_to_a_checkpoint_is_followed(saved):
    link = saved.with_name("last.ckpt")
    link.symlink_to(saved.name)
    flip(saved)
    with pytest.warns(UserWarning, match="Taking the one before"):
        assert CrashSafeCheckpointIO().load_checkpoint(link)["epoch"] == 1


@pytest.mark.parametrize(
    "url", ["http://x.org/a.ckpt", "https://x.org/a.ckpt", "s3://b/a.ckpt", "file:///a.ckpt", "simplecache::http://x/a"]
)
def test_addresses_are_refused(url):
    with pytest.raises(CheckpointError, match=r"^ckpt_path: .* is an address, not a file; download it first$"):
        CrashSafeCheckpointIO().load_checkpoint(url)


def test_whoever_looks_first_is_told_where_it_lies(saved):
    path, checkpoint = newest_readable(saved)
    assert (path, checkpoint["epoch"]) == (saved, 2)
    flip(saved)
    with pytest.warns(UserWarning, match="Taking the one before"):
        path, checkpoint = newest_readable(saved)
    assert (path, checkpoint["epoch"]) == (previous_of(saved), 1)


# -- files that are not ours -------------------------------------------------------------------------------------------


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def malicious(kind, path, executed):
    """Writes a checkpoint that does harm to whoever is careless."""
    if kind == "reduce":
        torch.save(state(1) | {"evil": Evil(executed)}, path)
    elif kind == "reduce, old format":
        torch.save(state(1) | {"evil": Evil(executed)}, path, _use_new_zipfile_serialization=False)
    elif kind == "old format":
        torch.save(state(1), path, _use_new_zipfile_serialization=False)
    elif kind == "instantiator":
        torch.save(
            state(1) | {"hyper_parameters": {"_instantiator": "os.system", "command": f"touch {executed}"}}, path
        )
    elif kind == "hyper-parameters":
        torch.save(state(1) | {"hyper_parameters": [f"touch {executed}"]}, path)
    elif kind == "bomb":
        with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("archive/data.pkl", b"\0" * 10**8)
    elif kind == "overlap":
        torch.save(state(1), path)
        content = path.read_bytes()
        size = (400).to_bytes(4, "little")
        assert content.count(size * 2) >= 2
        path.write_bytes(content.replace(size * 2, (2**30).to_bytes(4, "little") * 2))
    elif kind == "no state":
        torch.save([1, 2], path)


KINDS = "reduce", "reduce, old format", "old format", "instantiator", "hyper-parameters", "bomb", "overlap", "no state"


@pytest.mark.parametrize("kind", KINDS)
def test_malicious_checkpoints_are_refused_without_effect(tmp_path, kind):
    path, executed = tmp_path / "x.ckpt", tmp_path / "executed"
    malicious(kind, path, executed)
    with pytest.raises(CheckpointError, match=r"^ckpt_path: .*x\.ckpt cannot be loaded: ") as error:
        CrashSafeCheckpointIO().load_checkpoint(path, weights_only=False)
    assert "\n" not in str(error.value)
    assert not executed.exists()


# -- in a Trainer ------------------------------------------------------------------------------------------------------


def data():
    return ExperienceDataModule(
        "CartPole-v1", num_envs=1, learning_starts=32, batch_size=8, steps_per_epoch=32, eval_episodes=1
    )


def latest(folder):
    return ModelCheckpoint(folder, "latest", save_on_train_epoch_end=False, enable_version_counter=False)


@pytest.mark.parametrize("command", ["fit", "validate", "test", "predict"])
def test_a_trainer_loads_through_it_whatever_it_does(make_trainer, make_model, tmp_path, command):
    source = data()
    make_trainer(max_epochs=2, callbacks=[latest(tmp_path)], enable_checkpointing=True).fit(make_model(source), source)
    flip(tmp_path / "latest.ckpt", 2000)
    trainer, other = make_trainer(max_epochs=3), data()
    with pytest.warns(UserWarning, match="Taking the one before"):
        getattr(trainer, command)(make_model(other), other, ckpt_path=tmp_path / "latest.ckpt")
    assert isinstance(trainer.strategy.checkpoint_io, CrashSafeCheckpointIO)
    with pytest.raises(ValueError, match=r"ckpt_path: .* is an address"):
        getattr(make_trainer(), command)(make_model(other), other, ckpt_path="http://127.0.0.1:9/x.ckpt")


@pytest.mark.parametrize("kind", ["reduce", "instantiator"])
def test_a_trainer_refuses_malicious_checkpoints(make_trainer, make_model, tmp_path, kind):
    path, executed, source = tmp_path / "x.ckpt", tmp_path / "executed", data()
    malicious(kind, path, executed)
    with pytest.raises(ValueError, match="ckpt_path: "):
        make_trainer().fit(make_model(source), source, ckpt_path=path, weights_only=False)
    with pytest.raises(Exception, match=r"instantiator|Weights only|name a function"):
        DQNLightningModule.load_from_checkpoint(path)
    assert not executed.exists()


def test_training_goes_on_when_a_checkpoint_cannot_be_saved(make_trainer, make_model, tmp_path, monkeypatch):
    class Fill(Callback):
        def on_validation_start(self, trainer, pl_module):
            monkeypatch.setattr(shutil, "disk_usage", lambda _: _Free() if trainer.current_epoch else _Full())

    class _Full:
        free = 10**12

    source = data()
    trainer = make_trainer(max_epochs=3, callbacks=[Fill(), latest(tmp_path)], enable_checkpointing=True)
    with pytest.warns(UserWarning, match="could not be saved"):
        trainer.fit(make_model(source), source)
    assert trainer.current_epoch == 3
    assert read_checkpoint(tmp_path / "latest.ckpt")["epoch"] == 0


def test_another_plugin_is_left_alone(make_trainer):
    trainer = make_trainer(plugins=[AsyncCheckpointIO()])
    assert not install_checkpoint_io(trainer)
    assert isinstance(trainer.strategy.checkpoint_io, AsyncCheckpointIO)


def test_the_plain_one_is_replaced_once(make_trainer):
    trainer = make_trainer()
    assert type(trainer.strategy.checkpoint_io) is TorchCheckpointIO
    assert install_checkpoint_io(trainer)
    first = trainer.strategy.checkpoint_io
    assert install_checkpoint_io(trainer, written=print)
    assert trainer.strategy.checkpoint_io is first
    assert first._written is print


# -- where checkpoints go ----------------------------------------------------------------------------------------------


def saver(folder, name=None, **kwargs):
    return ModelCheckpoint(folder, name, **kwargs)


def test_full_checkpoints_go_where_the_one_goes_that_looks_at_no_score(tmp_path):
    weights = saver(tmp_path / "w", "weights", save_weights_only=True)
    best = saver(tmp_path / "b", "best", monitor="val/return")
    latest = saver(tmp_path / "l", "newest")
    for callbacks, expected in (
        ([weights, best, latest], (tmp_path / "l", "newest")),
        ([weights, best], (tmp_path / "b", "best")),
        ([weights], (tmp_path, "latest")),
        ([saver(tmp_path / "n"), best], (tmp_path / "n", "latest")),
        ([], (tmp_path, "latest")),
    ):
        trainer = SimpleNamespace(checkpoint_callbacks=callbacks, default_root_dir=str(tmp_path))
        assert full_checkpoint(trainer) == expected
        assert checkpoint_folders(trainer) == {Path(callback.dirpath) for callback in callbacks}


@pytest.mark.parametrize("name", ["{epoch}-{step}", None])
def test_a_pattern_is_no_name_for_a_checkpoint(make_trainer, make_model, tmp_path, name):
    source, callback = data(), saver(tmp_path, name)
    trainer = make_trainer(callbacks=[callback], enable_checkpointing=True)
    assert written_checkpoint(trainer) == tmp_path / "latest.ckpt"
    trainer.fit(make_model(source), source)
    assert full_checkpoint(trainer) == (tmp_path, "latest")
    assert written_checkpoint(trainer) == Path(callback.best_model_path)
    assert written_checkpoint(trainer).name.startswith("epoch=0-step=")
    assert written_checkpoint(trainer).is_file()


def test_weights_alone_are_loaded_as_safely(make_trainer, make_model, tmp_path):
    source = data()
    make_trainer(max_epochs=2, callbacks=[latest(tmp_path)], enable_checkpointing=True).fit(make_model(source), source)
    path = tmp_path / "latest.ckpt"
    loaded = DQNLightningModule.load_from_checkpoint(path, max_skipped_updates=3)
    assert loaded.max_skipped_updates == 3
    with path.open("rb") as file:
        assert DQNLightningModule.load_from_checkpoint(file, weights_only=False).gradient_steps == loaded.gradient_steps
    flip(path, 2000)
    with pytest.warns(UserWarning, match="Taking the one before"):
        assert DQNLightningModule.load_from_checkpoint(path).gradient_steps < loaded.gradient_steps
    with pytest.raises(ValueError, match=r"ckpt_path: .* is an address"):
        DQNLightningModule.load_from_checkpoint("http://127.0.0.1:9/x.ckpt")
    for kind in ("reduce", "instantiator"):
        malicious(kind, tmp_path / "x.ckpt", tmp_path / "executed")
        with pytest.raises(CheckpointError):
            DQNLightningModule.load_from_checkpoint(tmp_path / "x.ckpt", weights_only=False)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    "other", ["local://{}/thesis", "{}/thesis", "{}/thesis/a.txt", "{}/x/../thesis/a.txt", "{}/other.ckpt"]
)
def test_paths_in_a_resumed_checkpoint_are_not_removed(make_trainer, make_model, tmp_path, other):
    """ModelCheckpoint takes the path of the checkpoint that it removes next from the checkpoint that is resumed."""
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "a.txt").write_text("mine")
    (tmp_path / "run").mkdir()
    make_trainer(callbacks=[latest(tmp_path / "run")], enable_checkpointing=True).fit(
        make_model(source := data()), source
    )
    path = tmp_path / "run" / "latest.ckpt"
    shutil.copy(path, tmp_path / "other.ckpt")
    shutil.copy(checksums_of(path), tmp_path / "other.ckpt.sha256")
    content = torch.load(path, weights_only=True)
    hostile = other.format(tmp_path)
    for name, state in content["callbacks"].items():
        if "ModelCheckpoint" in name:
            state |= {"best_model_path": hostile, "kth_best_model_path": hostile, "last_model_path": hostile}
    torch.save(content, path)
    checksums_of(path).unlink()
    before = {file: file.read_bytes() for file in [*tmp_path.glob("thesis/*"), *tmp_path.glob("other.ckpt*")]}
    callback = latest(tmp_path / "run")
    callback.save_last = True
    again = data()
    make_trainer(max_epochs=3, callbacks=[callback], enable_checkpointing=True).fit(
        make_model(again), again, ckpt_path=path, weights_only=True
    )
    assert {file: file.read_bytes() for file in before} == before

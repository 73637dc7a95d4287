import errno
import fcntl
import os
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lightning_dqn import ExperienceDataModule
from lightning_dqn.cli import main
from lightning_dqn.files import is_held
from lightning_dqn.run_folder import RunFolders
from tests.environments import Chain
from tests.runs import QUIET, SMALL


@contextmanager
def held(folder):
    """Lock a folder as another process does: through a descriptor of its own."""
    descriptor = os.open(folder, os.O_RDONLY)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    yield
    os.close(descriptor)


def claim(*loggers, is_global_zero=True):
    folders = RunFolders()
    strategy = SimpleNamespace(launcher=None)
    folders.claim(SimpleNamespace(loggers=loggers, is_global_zero=is_global_zero, strategy=strategy))
    return folders


def make_data():
    return ExperienceDataModule(Chain, num_envs=2, learning_starts=8, batch_size=4, steps_per_epoch=16)


class Look(Callback):
    """Notes in the first iteration whether the folder of the run is held; may raise then."""

    def __init__(self, error=None):
        self.error, self.seen = error, None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen = is_held(Path(trainer.log_dir))
        if self.error is not None:
            raise self.error


@pytest.mark.parametrize("kind", [CSVLogger, TensorBoardLogger])
def test_claim_of_a_numbered_folder_that_another_run_creates_first_takes_the_next_number(tmp_path, monkeypatch, kind):
    def next_version(logger):  # two other runs are quicker
        for number in (4, 5):
            (tmp_path / "runs" / f"version_{number}").mkdir(parents=True, exist_ok=True)
        return 4

    monkeypatch.setattr(kind, "_get_next_version", next_version)
    logger = kind(tmp_path, "runs")
    claim(logger)
    assert Path(logger.log_dir) == tmp_path / "runs" / "version_6"
    assert is_held(tmp_path / "runs" / "version_6")


def test_claim_of_numbered_folders_gives_every_run_its_own(tmp_path):
    loggers = [CSVLogger(tmp_path, "runs") for _ in range(3)]
    assert [logger.version for logger in loggers] == [0, 0, 0]
    loggers = [CSVLogger(tmp_path, "runs") for _ in range(3)]
    for logger in loggers:
        claim(logger)
    assert [logger.version for logger in loggers] == [0, 1, 2]


@pytest.mark.parametrize("version", [0, "mine", ""])
def test_claim_of_a_given_folder_in_use_is_refused(tmp_path, version):
    logger = CSVLogger(tmp_path, "runs", version)
    Path(logger.log_dir).mkdir(parents=True)
    with (
        held(logger.log_dir),
        pytest.raises(ValueError, match=r"^trainer\.logger: the folder is in use by another run"),
    ):
        claim(logger)
    claim(logger)
    assert is_held(Path(logger.log_dir))


def test_refused_claim_of_several_loggers_leaves_no_folder_and_no_lock(tmp_path):
    given = [CSVLogger(tmp_path, "given", name) for name in ("free", "in_use")]
    Path(given[1].log_dir).mkdir(parents=True)
    with held(given[1].log_dir), pytest.raises(ValueError, match="in_use"):
        claim(CSVLogger(tmp_path, "numbered"), *given)
    assert not (tmp_path / "numbered").exists()
    assert not is_held(Path(given[0].log_dir))


def test_claim_of_one_folder_for_two_loggers_succeeds(tmp_path):
    folders = claim(CSVLogger(tmp_path, "runs", "mine"), TensorBoardLogger(tmp_path, "runs", "mine"))
    assert is_held(tmp_path / "runs" / "mine")
    folders.teardown(None, None, "fit")
    assert not is_held(tmp_path / "runs" / "mine")


def test_claim_by_another_rank_than_0_leaves_the_folders_alone(tmp_path):
    claim(CSVLogger(tmp_path, "runs"), is_global_zero=False)
    assert not list(tmp_path.iterdir())


def test_claim_leaves_loggers_without_a_local_folder_alone(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    claim(SimpleNamespace(log_dir=None), SimpleNamespace(log_dir="s3://bucket/runs/version_0"))
    assert not list(tmp_path.iterdir())


def test_claim_without_locks_still_numbers_folders(tmp_path, monkeypatch):
    def flock(descriptor, operation):
        raise OSError(errno.ENOLCK, "no locks available")

    monkeypatch.setattr(fcntl, "flock", flock)
    loggers = [CSVLogger(tmp_path, "runs") for _ in range(2)] + [CSVLogger(tmp_path, "runs", 0)]
    for logger in loggers:
        claim(logger).teardown(None, None, "fit")
    assert [logger.version for logger in loggers] == [0, 1, 0]


@pytest.mark.parametrize("version", [None, 0])
def test_claim_of_a_folder_that_cannot_be_created_is_left_to_the_logger(tmp_path, version):
    (tmp_path / "runs").write_text("")
    claim(SimpleNamespace(log_dir=str(tmp_path / "runs" / "version_0"), _version=version))


@pytest.mark.parametrize("logger", [True, "csv"])
def test_fit_holds_its_folder_until_it_ends(make_trainer, make_model, tmp_path, logger):
    logger = CSVLogger(tmp_path, "runs", "mine") if logger == "csv" else logger
    for _ in range(2):  # the folder of the first run is free for the second
        data, look = make_data(), Look()
        trainer = make_trainer(logger=logger, callbacks=[look])
        trainer.fit(make_model(data), data)
        assert look.seen
        assert not is_held(Path(trainer.log_dir))


def test_fit_that_fails_releases_its_folder(make_trainer, make_model):
    data = make_data()
    trainer = make_trainer(logger=True, callbacks=[Look(RuntimeError("broken"))])
    with pytest.raises(RuntimeError, match="broken"):
        trainer.fit(make_model(data), data)
    assert not is_held(Path(trainer.log_dir))


def test_fit_and_validate_of_one_trainer_use_the_same_folder(make_trainer, make_model, tmp_path):
    data = make_data()
    model, trainer = make_model(data), make_trainer(logger=True)
    trainer.fit(model, data)
    trainer.validate(model, data)
    trainer.fit_loop.max_epochs = 2
    trainer.fit(model, data)
    assert [path.name for path in (tmp_path / "lightning_logs").iterdir()] == ["version_0"]


def test_run_inside_of_a_run_may_share_its_logger(make_trainer, make_model):
    class Validate(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            other = make_data()
            make_trainer(logger=trainer.logger).validate(make_model(other), other, verbose=False)

    data, look = make_data(), Look()
    make_trainer(logger=True, callbacks=[Validate(), look], max_epochs=2).fit(make_model(data), data)
    assert look.seen


def test_plain_trainer_with_a_given_folder_in_use_is_refused_and_keeps_its_metrics(make_trainer, make_model, tmp_path):
    metrics = tmp_path / "runs" / "version_0" / "metrics.csv"
    metrics.parent.mkdir(parents=True)
    metrics.write_text("step\n1\n")
    data = make_data()
    trainer = make_trainer(logger=CSVLogger(tmp_path, "runs", 0))
    with held(metrics.parent), pytest.raises(ValueError, match=r"^trainer\.logger: "):
        trainer.fit(make_model(data), data)
    assert metrics.read_text() == "step\n1\n"


@pytest.mark.parametrize("command", ["fit", "validate"])
def test_command_with_a_given_folder_in_use_is_refused_in_one_line(command):
    folder = Path("runs/cartpole/version_0")
    folder.mkdir(parents=True)
    given = "{class_path: CSVLogger, init_args: {save_dir: runs, name: cartpole, version: 0}}"
    args = [command, "--config=cartpole", *SMALL, *QUIET, "--video=null", f"--trainer.logger={given}"]
    with held(folder), pytest.raises(SystemExit) as ended:
        main(args)
    assert str(ended.value) == (
        f"error: trainer.logger: the folder is in use by another run (got {folder}). Leave out the logger's `version` "
        "to get a new folder, or wait for the end of that run."
    )
    assert not list(folder.iterdir())

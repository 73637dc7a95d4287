import json
import struct
import warnings
from pathlib import Path
from typing import Any

import pytest
import wandb
from wandb.proto import wandb_internal_pb2

from lightning_dqn.cli import main
from lightning_dqn.watch import WandbLogger

FIT = [
    "fit",
    "--config=cartpole",
    "--trainer.max_epochs=2",
    "--trainer.check_val_every_n_epoch=1",
    "--trainer.log_every_n_steps=2",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--data.learning_starts=64",
    "--data.steps_per_epoch=128",
    "--data.eval_episodes=2",
]


@pytest.fixture(autouse=True)
def _logged_out(tmp_path, monkeypatch):
    """A machine on which nobody has logged in, with nobody at the keyboard."""
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "no-netrc"))
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))  # where artifacts wait for `wandb sync`
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    wandb.teardown()
    yield
    wandb.teardown()


def records(folder: Path) -> list[wandb_internal_pb2.Record]:
    """Everything an offline run wrote: a LevelDB log of protobuf records behind a header of seven bytes."""
    (file,) = folder.glob("*.wandb")
    data = file.read_bytes()
    assert data[:4] == b":W&B"
    position, found, pieces = 7, [], b""
    while position + 7 <= len(data):
        left_in_block = 32768 - position % 32768
        if left_in_block < 7:
            position += left_in_block
            continue
        length, kind = struct.unpack("<HB", data[position + 4 : position + 7])
        pieces += data[position + 7 : position + 7 + length]
        position += 7 + length
        if kind in (1, 4):  # a whole record, or the last piece of one
            record = wandb_internal_pb2.Record()
            record.ParseFromString(pieces)
            found.append(record)
            pieces = b""
    return found


def history(written: list[wandb_internal_pb2.Record]) -> list[dict[str, Any]]:
    """The rows of a run; a medium is a dictionary in its row."""
    rows = []
    for record in written:
        if record.WhichOneof("record_type") != "history":
            continue
        row: dict[str, Any] = {}
        for item in record.history.item:
            name, *inside = item.nested_key or [item.key]
            if inside:
                row.setdefault(name, {})[inside[0]] = json.loads(item.value_json)
            else:
                row[name] = json.loads(item.value_json)
        rows.append(row)
    return rows


def test_without_a_login_a_run_is_kept_on_disk_over_env_steps_with_its_configuration(tmp_path, capsys):
    main(FIT)
    said = capsys.readouterr().out
    wandb.teardown()
    (folder,) = (tmp_path / "runs/wandb").glob("offline-run-*")
    assert f"upload to Weights & Biases with: wandb sync {folder.relative_to(tmp_path)}" in said

    written = records(folder)
    axes = {record.metric.glob_name or record.metric.name: record.metric.step_metric for record in written}
    assert axes["*"] == "env_steps"
    rows = history(written)
    assert [row["env_steps"] for row in rows if "val/return" in row] == [192, 320]
    assert all("env_steps" in row for row in rows)
    assert any({"train/loss", "collect/epsilon"} <= set(row) for row in rows)
    updates = [update for record in written for update in [*record.run.config.update, *record.config.update]]
    configuration = {update.key or "/".join(update.nested_key): update.value_json for update in updates}
    assert "env_id: CartPole-v1" in json.loads(configuration["config"])


def test_an_unreachable_server_makes_a_run_offline_with_a_warning(tmp_path, monkeypatch):
    real = wandb.init
    modes = []

    def refused(**arguments):
        modes.append(arguments.get("mode"))
        if arguments.get("mode") != "offline":
            raise wandb.errors.CommError("no route to host")
        return real(**arguments)

    monkeypatch.setattr(wandb, "init", refused)
    monkeypatch.setattr("lightning_dqn.watch._logged_in", lambda: True)
    logger = WandbLogger(save_dir=str(tmp_path / "runs"))
    with pytest.warns(UserWarning, match="logging offline: no route to host"):
        run = logger.experiment
    assert modes == [None, "offline"]
    assert run.offline
    assert logger.sync_command == f"wandb sync {run.settings.sync_dir}"
    logger.finish()
    assert wandb.run is None


def test_wandb_mode_is_obeyed(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    logger = WandbLogger(save_dir=str(tmp_path / "runs"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run = logger.experiment
    run.log({"a": 1})
    logger.finish()
    assert logger.sync_command is None
    assert not (tmp_path / "runs/wandb").exists()


@pytest.mark.slow
def test_tensorboard_works_where_it_is_installed(tmp_path):
    pytest.importorskip("tensorboard")
    logger = "{class_path: lightning.pytorch.loggers.TensorBoardLogger, init_args: {save_dir: runs, name: tb}}"
    main([*FIT, f"--trainer.logger={logger}"])
    assert list((tmp_path / "runs/tb/version_0").glob("events.out.tfevents.*"))


def artifacts(written):
    """Aliases, and size of the file ``model.ckpt``, of each model among the artifacts, in the order of their upload."""
    models = [record.request.log_artifact.artifact for record in written if record.request.HasField("log_artifact")]
    models += [record.artifact for record in written if record.HasField("artifact")]
    return [
        (sorted(model.aliases), {entry.path: entry.size for entry in model.manifest.contents})
        for model in models
        if model.type == "model"
    ]


def test_checkpoints_become_artifacts_without_the_replay_and_the_best_return_is_kept(tmp_path):
    main(FIT)
    wandb.teardown()
    (folder,) = (tmp_path / "runs/wandb").glob("offline-run-*")
    written = records(folder)
    kept = tmp_path / "runs/cartpole/version_0/checkpoints"
    sizes = {name: {"model.ckpt": (kept / f"{name}.ckpt").stat().st_size} for name in ("best", "latest")}
    # W&B calls every version "latest" that is the newest when it comes; the second takes the name from the first
    assert artifacts(written) == [(["best", "latest"], sizes["best"]), (["latest"], sizes["latest"])]
    (metric,) = [record.metric for record in written if record.metric.name == "val/return"]
    assert (metric.step_metric, metric.summary.max, metric.summary.last) == ("env_steps", True, True)


def test_checkpoints_stay_where_they_are_if_asked_to(tmp_path):
    logger = "[{class_path: lightning_dqn.watch.WandbLogger, init_args: {save_dir: runs, log_model: false}}]"
    main([*FIT, f"--trainer.logger={logger}"])
    wandb.teardown()
    (folder,) = (tmp_path / "runs/wandb").glob("offline-run-*")
    assert artifacts(records(folder)) == []


def test_a_run_is_gone_on_with_unless_it_is_another(tmp_path):
    logger = WandbLogger(save_dir=str(tmp_path), mode="offline")
    logger.go_on_with("abc")
    assert logger.experiment.id == "abc"
    logger.go_on_with("other")
    assert logger.version == "abc"
    logger.finish()
    chosen = WandbLogger(save_dir=str(tmp_path), id="mine", mode="offline")
    chosen.go_on_with("abc")
    assert chosen.version == "mine"

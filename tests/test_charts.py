import json

import pytest
import torch
import wandb
from lightning.pytorch import Callback
from PIL import Image

from lightning_dqn import ExperienceDataModule, WandbCharts
from lightning_dqn.charts import histogram, run_id_of
from lightning_dqn.cli import main
from tests.test_watch import FIT, _logged_out, history, records  # noqa: F401


def offline_runs(tmp_path):
    """The folders of offline runs, oldest first."""
    wandb.teardown()
    return sorted((tmp_path / "runs/wandb").glob("offline-run-*"), key=lambda path: path.stat().st_mtime_ns)


def test_a_run_shows_histograms_episodes_and_a_film_over_env_steps(tmp_path):
    main([*FIT, "--video.every_n_epochs=1"])
    (folder,) = offline_runs(tmp_path)
    rows = history(records(folder))
    for name in ("train/q_values", "train/td_errors"):
        (row,) = [row for row in rows if name in row]  # others come within ten seconds of it
        assert row[name]["_type"] == "histogram"
        assert sum(row[name]["values"]) == 8 * 64  # the updates of one iteration
        assert len(row[name]["values"]) == 64
        assert row["env_steps"] == 64 + 2 * 16  # the first row that loggers wrote

    tables = [row for row in rows if "val/episodes" in row]
    assert [row["env_steps"] for row in tables] == [192, 320]
    means = [row["val/return"] for row in rows if "val/return" in row]
    for row, mean in zip(tables, means, strict=True):
        table = json.loads((folder / "files" / row["val/episodes"]["path"]).read_text())
        assert table["columns"] == ["seed", "return", "length"]
        seeds, returns, lengths = zip(*table["data"], strict=True)
        assert len(set(seeds)) == 2
        assert sum(returns) / 2 == pytest.approx(mean)
        assert list(lengths) == list(returns)  # of CartPole

    films = [row for row in rows if "val/episode" in row]
    assert [row["env_steps"] for row in films] == [192, 320]
    sent = folder / "files" / films[-1]["val/episode"]["path"]
    assert sent.read_bytes() == (tmp_path / "runs/cartpole/version_0/episode.gif").read_bytes()
    assert Image.open(sent).n_frames > 2
    assert films[-1]["val/episode"]["caption"].startswith("return ")


def test_a_fit_that_goes_on_goes_on_in_the_run_of_its_checkpoint(tmp_path):
    main([*FIT, "--video=null"])
    latest = tmp_path / "runs/cartpole/version_0/checkpoints/latest.ckpt"
    main([*FIT, "--video=null", "--trainer.max_epochs=3", f"--ckpt_path={latest}"])
    first, second = (records(folder) for folder in offline_runs(tmp_path))
    ids = [{record.run.run_id for record in written if record.HasField("run")} for written in (first, second)]
    assert ids[0] == ids[1] == {run_id_of(torch.load(latest, weights_only=True))}
    assert [row["env_steps"] for row in history(second) if "val/return" in row] == [448]


def test_what_is_not_kept_is_not_gone_on_with(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    main([*FIT, "--video=null"])
    latest = torch.load(tmp_path / "runs/cartpole/version_0/checkpoints/latest.ckpt", weights_only=True)
    assert run_id_of(latest) is None


class Breaks(Callback):
    """Has W&B refuse everything but numbers."""

    def on_train_start(self, trainer, pl_module):
        def refuse(*args, **kwargs):
            raise wandb.Error("no room")

        for kind in ("Histogram", "Table", "Video"):
            self.patch.setattr(wandb, kind, refuse)


def test_charts_that_fail_are_one_warning(tmp_path, monkeypatch, recwarn):
    Breaks.patch = monkeypatch
    main([*FIT, f"--trainer.callbacks={__name__}.Breaks"])
    said = [str(warning.message) for warning in recwarn if "no more charts" in str(warning.message)]
    assert said == [
        "Weights & Biases gets no more charts, and training goes on: Error: no room. Figures are logged as before."
    ]
    (folder,) = offline_runs(tmp_path)
    assert [row["env_steps"] for row in history(records(folder)) if "val/return" in row] == [192, 320]


def test_without_weights_and_biases_there_is_nothing_to_do(make_trainer, make_model):
    data = ExperienceDataModule("CartPole-v1", learning_starts=64, steps_per_epoch=64, eval_episodes=1)
    charts = WandbCharts()
    make_trainer(callbacks=[charts], log_every_n_steps=1).fit(make_model(data), data)
    assert charts.state_dict() == {}


def test_numbers_that_are_not_finite_are_left_out():
    made = histogram(torch.tensor([[1.0, 2.0], [float("nan"), float("inf")]]))
    assert sum(made.histogram) == 2
    assert (made.bins[0], made.bins[-1]) == (1.0, 2.0)
    assert sum(histogram(torch.tensor([float("nan")])).histogram) == 0

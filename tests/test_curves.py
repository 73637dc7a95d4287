import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

from lightning_dqn import ExperienceDataModule, LearningCurve
from lightning_dqn.curves import Curve, curves_of_a_run, draw_curves, picture
from tests.environments import Chain


def make_data():
    return ExperienceDataModule(
        Chain, num_envs=2, learning_starts=64, train_frequency=4, steps_per_epoch=64, eval_episodes=4, seed=3
    )


def colors(path):
    return {color for _, color in Image.open(path).convert("RGB").getcolors(1_000_000)}


def test_a_run_leaves_its_curve(make_trainer, make_model, tmp_path, monkeypatch):
    drawn = []
    monkeypatch.setattr(
        "lightning_dqn.curves.draw_curves", lambda *args, real=draw_curves: [drawn.append(args), real(*args)]
    )
    data, curve = make_data(), LearningCurve()
    # rows are flushed every hundredth step, and this run has not as many
    logger = CSVLogger(tmp_path, name="run", version="")
    make_trainer(callbacks=[curve], logger=logger, log_every_n_steps=2, max_epochs=3).fit(make_model(data), data)
    assert curve.path == tmp_path / "run/learning_curve.png"
    assert Image.open(curve.path).size == (1050, 600)
    ((curves, title, _),) = drawn
    assert title == "Chain, seed 3"
    with (tmp_path / "run/metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["val/return"]]
    assert len(rows) == 3
    assert curves[-1].steps.tolist() == [float(row["env_steps"]) for row in rows] == [128, 192, 256]
    assert curves[-1].values.tolist() == [float(row["val/return"]) for row in rows]


def test_what_is_not_logged_is_not_drawn():
    training = [{"env_steps": "4", "collect/return": "1.5"}, {"env_steps": "8", "collect/return": "2"}]
    validation = [{"env_steps": "8", "val/return": "3", "val/return_iqm": "2.5"}]
    assert [curve.values.tolist() for curve in curves_of_a_run(training + validation)] == [[1.5, 2.0], [2.5], [3.0]]
    (curve,) = curves_of_a_run([*training, {"env_steps": "9"}])
    assert curve.steps.tolist() == [4.0, 8.0]
    assert curves_of_a_run([]) == []


def test_one_point_can_be_seen(tmp_path):
    point = Curve(np.array([5.0]), np.array([1.0]))
    draw_curves([point], "one", tmp_path / "one.png")
    assert (31, 119, 180) in colors(tmp_path / "one.png")  # matplotlib's blue


@pytest.mark.parametrize("entries", [1, 3, 4, 5, 9])
def test_the_legend_covers_nothing_that_is_drawn(entries, tmp_path):
    with picture(tmp_path / "x.png", "title", "x", "y") as axes:
        for i in range(entries):  # everywhere, so that no place inside is free
            axes.plot([0, 1, 0, 1, 0], [0, 1, 1, 0, i], label=f"validation: mean of the last {i} episodes")
    (legend,) = axes.figure.legends

    legend, drawn = legend.get_window_extent(), axes.get_window_extent()

    assert not legend.overlaps(drawn)
    assert min(drawn.width, drawn.height) > 200  # what is left for the curves, in pixels
    assert legend.x0 >= 0
    assert legend.y0 >= 0


def test_levels_are_lines_with_names(tmp_path):
    curve = Curve(np.arange(3.0), np.arange(3.0))
    for name, levels in {"with": {"solved": 1.0}, "without": None}.items():
        draw_curves([curve], "a", tmp_path / name / "a.png", levels)
    with_level, without = (Image.open(tmp_path / name / "a.png").convert("L") for name in ("with", "without"))
    assert np.sum(np.asarray(with_level) != np.asarray(without)) > 500


@pytest.mark.slow
def test_pyplot_and_its_backend_are_left_alone(tmp_path):
    code = (
        "import sys, numpy as np; from pathlib import Path; from unittest import mock;"
        "from lightning_dqn.curves import Curve, draw_curves; import matplotlib as mpl;"
        "mpl.rcParams['backend'] = 'TkAgg';"  # which cannot even be loaded without a display
        "draw_curves([Curve(np.arange(3.0), np.arange(3.0))], 'a', Path('a.png'));"
        "assert mpl.rcParams._get('backend') == 'TkAgg'; import matplotlib.pyplot as plt; assert not plt.get_fignums()"
    )
    subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
    assert (tmp_path / "a.png").is_file()


def test_a_picture_that_cannot_be_written_is_a_warning(make_trainer, make_model, tmp_path):
    data, curve, folder = make_data(), LearningCurve(), tmp_path / "run"
    (folder / "learning_curve.png").mkdir(parents=True)
    trainer = make_trainer(callbacks=[curve], logger=CSVLogger(tmp_path, name="run", version=""))
    with pytest.warns(UserWarning, match=r"no picture of the learning curve, and training goes on: .*--curve null"):
        trainer.fit(make_model(data), data)
    assert curve.path is None


def test_without_a_file_of_metrics_there_is_no_picture(make_trainer, make_model):
    data, curve = make_data(), LearningCurve()
    make_trainer(callbacks=[curve]).fit(make_model(data), data)
    assert curve.path is None


def test_the_benchmarks_draw_with_it(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent.parent / "benchmarks")
    import learning_curve
    import minatar_games

    steps, runs = np.arange(3.0), np.arange(6.0).reshape(2, 3)
    learning_curve.draw(steps, runs, 3.0, "CartPole", tmp_path / "a.png")
    minatar_games.draw({"dqn": [(steps, run) for run in runs]}, "Breakout", tmp_path / "b.png")
    assert all(Image.open(tmp_path / name).size == (1050, 600) for name in ("a.png", "b.png"))


def test_an_interval_is_a_band_around_its_curve(tmp_path):
    line = Curve(np.arange(3.0), np.zeros(3))
    for name, band in {"with": (-np.ones(3), np.ones(3)), "without": None}.items():
        draw_curves(
            [line._replace(band=band), Curve(np.arange(3.0), np.arange(3.0) - 1)], "a", tmp_path / f"{name}.png"
        )
    # a fifth of the blue; of that colour the line alone has only the edges
    pixels = {
        name: Image.open(tmp_path / f"{name}.png").convert("RGB").getcolors(1_000_000) for name in ("with", "without")
    }
    areas = {name: sum(count for count, color in each if color == (210, 227, 240)) for name, each in pixels.items()}
    assert areas["with"] > 100_000 > 100 * areas["without"]

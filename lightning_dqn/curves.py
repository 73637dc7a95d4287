"""Learning curves as pictures: of one run beside its figures, and of many in the benchmarks."""

from __future__ import annotations

import io
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from numpy.typing import NDArray

from lightning_dqn.experience.datamodule import data_of
from lightning_dqn.files import NewFile
from lightning_dqn.forgiving import Forgiving
from lightning_dqn.loggers import Row, read_rows

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_FEW = 30  # points that are worth a mark each
_FEW_LABELS = 6  # millions of steps would touch each other
_MANY = 4  # entries of a legend that stand beside a picture, not below


class Curve(NamedTuple):
    """One line of a picture.

    Attributes:
        steps: Environment steps, ``[P]``.
        values: Returns, ``[P]``.
        label: For the legend; ``None`` to have no entry there.
        color: As matplotlib calls it.
        thin: Drawn as background for those that are not.
        dashed: Drawn in dashes.
        band: Lower and upper ends of an interval around the values, each ``[P]``.
    """

    steps: NDArray[np.float64]
    values: NDArray[np.float64]
    label: str | None = None
    color: str = "tab:blue"
    thin: bool = False
    dashed: bool = False
    band: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None


def draw_curves(
    curves: Sequence[Curve],
    title: str,
    out: Path,
    levels: Mapping[str, float] | None = None,
    x: str = "environment steps",
    y: str = "return of an episode",
) -> None:
    """Draws returns over environment steps, or something over something else.

    Args:
        curves: In the order in which they are drawn.
        title: Above the picture.
        out: The PNG to write; its folder is made if missing.
        levels: Scores to compare with, by label.
        x: What is drawn to the right, with its unit.
        y: What is drawn upwards, with its unit.
    """
    with picture(out, title, x, y) as axes:
        for curve in curves:
            axes.plot(
                curve.steps,
                curve.values,
                color=curve.color,
                label=curve.label,
                alpha=0.45 if curve.thin else 1.0,
                linewidth=1.0 if curve.thin else 1.5 if curve.dashed else 2.5,
                linestyle="--" if curve.dashed else "-",
                marker="o" if not curve.thin and not curve.dashed and len(curve.steps) <= _FEW else None,
                markersize=4,
            )
            if curve.band is not None:
                axes.fill_between(curve.steps, *curve.band, color=curve.color, alpha=0.2, linewidth=0)
        for label, level in (levels or {}).items():
            axes.axhline(level, color="gray", linestyle="--", linewidth=1, label=label)


@contextmanager
def picture(out: Path, title: str, x: str, y: str, height: float = 4.0) -> Iterator[Axes]:
    """A picture to draw into, without a display and without touching matplotlib's global state.

    Args:
        out: The PNG to write when the context is left; its folder is made if missing.
        title: Above it.
        x: What is drawn to the right, with its unit.
        y: What is drawn upwards, with its unit.
        height: Of the picture, in inches; it is 7 wide.

    Yields:
        The axes; what is drawn there with a label is in the legend.

    Raises:
        OSError: If it cannot be written; there is nothing of it then.
    """
    # half a second that only those who draw should pay
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import StrMethodFormatter

    figure = Figure(figsize=(7, height), dpi=150, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.set(title=title, xlabel=x, ylabel=y)
    if x == "environment steps":
        axes.xaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))
        axes.locator_params(axis="x", nbins=_FEW_LABELS)
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)
    yield axes
    entries = len(axes.get_legend_handles_labels()[0])
    # outside, where they cover nothing that is drawn
    if entries > _MANY:
        figure.legend(loc="outside right upper", frameon=False)
    elif entries:
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
    drawn = io.BytesIO()
    figure.savefig(drawn, format="png")
    out.parent.mkdir(parents=True, exist_ok=True)
    with NewFile(out) as file:
        file.write(drawn.getvalue())


class LearningCurve(Callback):
    """Draws the curve of a run from its ``metrics.csv`` when it ends: ``learning_curve.png`` beside it.

    It needs a :class:`~lightning.pytorch.loggers.CSVLogger`. What goes wrong is a warning, and the picture is missing.

    Attributes:
        path: The picture, if there is one.
    """

    path: Path | None = None

    def __init__(self) -> None:
        self._forgiving = Forgiving(
            "There is no picture of the learning curve", "Without LearningCurve (`--curve null`) none is tried."
        )

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Draws it."""
        logger = next((logger for logger in trainer.loggers if isinstance(logger, CSVLogger)), None)
        data = data_of(trainer)
        if logger is None or data is None or not trainer.is_global_zero:
            return
        with self._forgiving:
            logger.save()
            folder = Path(logger.log_dir)
            metrics = folder / "metrics.csv"
            curves = curves_of_a_run(read_rows(metrics if metrics.is_file() else None))
            if curves:
                env = data.state_dict()["env_id"]
                draw_curves(curves, f"{env}, seed {data.seed}", folder / "learning_curve.png")
                self.path = folder / "learning_curve.png"


def curves_of_a_run(rows: Sequence[Row]) -> list[Curve]:
    """What a run is judged by, as far as it is there.

    Args:
        rows: Of its ``metrics.csv``.
    """
    kinds = {
        "collect/return": Curve(_none, _none, "training: mean of the last 100 episodes", "tab:orange", thin=True),
        "val/return_iqm": Curve(_none, _none, "validation: interquartile mean", "tab:blue", dashed=True),
        "val/return": Curve(_none, _none, "validation: mean of greedy episodes", "tab:blue"),
    }
    curves = []
    for name, kind in kinds.items():
        points = [(float(row["env_steps"]), float(row[name])) for row in rows if "env_steps" in row and name in row]
        if points:
            steps, values = np.array(points).T
            curves.append(kind._replace(steps=steps, values=values))
    return curves


_none = np.zeros(0)

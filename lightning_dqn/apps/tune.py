"""The command ``lightning-dqn tune``: a search for settings, on Optuna, in several processes."""

from __future__ import annotations

import multiprocessing
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning_dqn.apps.command import Arguments, Refusal, at_least, needed
from lightning_dqn.apps.space import read_search, shown
from lightning_dqn.apps.trial import ParsedFit, check, settings
from lightning_dqn.files import NewFile
from lightning_dqn.shipped import find_config, resolve_config_names

if TYPE_CHECKING:
    from optuna import Study

    from lightning_dqn.apps.study import Plan

Crew = Callable[[Callable[["Plan"], None], "Plan", int], None]
"""Has so many workers do what is given on one plan, and returns when all are done."""

_INTERRUPTED = 130
_SHOWN = 5
_FEWEST_FOR_IMPORTANCE = 4


def in_processes(work: Callable[[Plan], None], plan: Plan, workers: int) -> None:
    """Has workers share a study on this machine; one alone works in this process.

    Args:
        work: What each does.
        plan: What it is told.
        workers: How many.

    Raises:
        KeyboardInterrupt: After Ctrl-C, when all have finished their step.
    """
    if workers == 1:
        work(plan)
        return
    # fresh interpreters: a fork would take threads and locks of this one along
    context = multiprocessing.get_context("spawn")
    processes = [context.Process(target=_work, args=(work, plan)) for _ in range(workers)]
    for process in processes:
        process.start()

    def wait() -> None:
        for process in processes:
            process.join()

    try:
        wait()
    except KeyboardInterrupt:
        wait()  # they have had it too, and finish their step
        raise


def command(arguments: list[str], crew: Crew = in_processes, program: str = "lightning-dqn") -> None:
    """``lightning-dqn tune --config ... --search ...``; the same command goes on where it was stopped.

    Args:
        arguments: Of the command line; what is not of this command is handed to ``fit``.
        crew: Where workers run.
        program: Of which it is a command.

    Raises:
        Refusal: If Optuna is not installed, something in the search is not understood, or there can be no such folder;
            nothing is run then.
    """
    parser = Arguments(
        "tune", "Searches for the settings with the highest val/return. Other arguments are fit's.", program
    )
    parser.add_argument("--search", required=True, help="a file, or the bare name of a shipped one")
    parser.add_argument("--output", type=Path, help="folder of the study; runs/search/NAME if not given")
    parser.add_argument("--workers", type=int, default=1, help="processes that share the study")
    parser.add_argument("--trials", type=int, help="instead of the file's")
    parser.add_argument("--seeds", type=int, help="runs of each trial, instead of the file's")
    parser.add_argument("--sampler", help="instead of the file's: grid, random, tpe")
    parser.add_argument("--pruner", help="instead of the file's: none, median, hyperband")
    parser.add_argument("--grace", type=int, default=60, help="seconds without a sign after which a worker is dead")
    parser.add_argument("--storage", help="address of a database that Optuna takes, instead of a file in the folder")
    options, fit = parser.parse_known_args(arguments)
    sys.argv[1:] = []  # LightningCLI warns of arguments given twice
    at_least(1, "--workers", options.workers)
    at_least(2, "--grace", options.grace)
    needed("optuna", "search")
    try:
        path, fit = Path(find_config(options.search, "search")), resolve_config_names(fit)
    except ValueError as error:
        raise Refusal(str(error)) from error
    instead = {name: getattr(options, name) for name in ("trials", "seeds", "sampler", "pruner")}
    search = read_search(path, {name: value for name, value in instead.items() if value is not None})
    check(fit, search.space)

    from lightning_dqn.apps.study import Plan, open_study, work

    plan = Plan(options.output or Path("runs/search") / path.stem, fit, search, options.grace, options.storage)
    study = open_study(plan)
    try:
        crew(work, plan, options.workers)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on")
        sys.exit(_INTERRUPTED)
    _finish(study, plan)


def _work(work: Callable[[Plan], None], plan: Plan) -> None:
    try:
        work(plan)
    except KeyboardInterrupt:
        sys.exit(_INTERRUPTED)


def _finish(study: Study, plan: Plan) -> None:
    from lightning_dqn.apps.study import best_of, failed, finished

    count, wanted = len(finished(study)), plan.search.num_trials
    best = best_of(study)
    if count < wanted:
        sys.exit(f"error: {count} of {wanted} trials are done, and no worker is left; the same command goes on")
    if best is None:
        errors = [str(trial.user_attrs["error"]) for trial in failed(study)]
        sys.exit(f"error: no trial went to its end; {errors[-1] if errors else 'all were pruned'}")
    print("\n" + _table(study))
    seeds = f"mean of {plan.search.seeds} seeds" if plan.search.seeds > 1 else "one seed"
    head = f"# trial {best.number} of {count}: val/return {best.values[0]:.1f}, {seeds}\n"
    with NewFile(plan.folder / "best.yaml") as file:
        file.write((head + ParsedFit([*plan.args, *settings(best.params)]).text).encode())
    print(f"\nlightning-dqn fit --config {plan.folder / 'best.yaml'}")
    for picture in _draw(study, plan.folder):
        print(f"picture in {picture}")


def _table(study: Study) -> str:
    from lightning_dqn.apps.study import complete, failed

    best = sorted(complete(study), key=lambda trial: -trial.values[0])[:_SHOWN]
    names = list(best[0].params)
    lines = ["| trial | val/return | " + " | ".join(names) + " |", "|---|---|" + "---|" * len(names)]
    for trial in best:
        values = " | ".join(shown(trial.params[name]) for name in names)
        lines.append(f"| {trial.number} | {trial.values[0]:.1f} | {values} |")
    states = [trial.state.name for trial in study.trials]
    ended = f"{states.count('COMPLETE')} trials to their end, {states.count('PRUNED')} pruned"
    lines.append(f"\n{ended}, {len(failed(study))} failed")
    return "\n".join(lines)


def _draw(study: Study, folder: Path) -> list[Path]:
    import matplotlib as mpl
    import matplotlib.pyplot as plt
    from optuna.visualization import matplotlib as pictures

    from lightning_dqn.apps.study import complete

    plt.switch_backend("agg")
    drawn = []
    values = [trial.values[0] for trial in complete(study)]
    kinds: dict[str, Callable[..., Any]] = {"history": pictures.plot_optimization_history}
    if len(values) >= _FEWEST_FOR_IMPORTANCE and len(set(values)) > 1:
        kinds["importance"] = pictures.plot_param_importances
    for name, draw in kinds.items():
        with warnings.catch_warnings(), mpl.rc_context():  # they set a style for all that is drawn later
            warnings.simplefilter("ignore")  # of Optuna, that its pictures may change
            axes = draw(study, target_name="val/return") if name == "history" else draw(study)
        axes.figure.set_size_inches(8, 4.5)
        axes.figure.set_layout_engine("constrained")
        path = folder / f"{name}.png"
        with NewFile(path) as file:
            axes.figure.savefig(file, format="png", dpi=130)
        plt.close(axes.figure)
        drawn.append(path)
    return drawn

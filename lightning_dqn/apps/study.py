"""The study of a search: one SQLite file that several workers share, and that loses no trial that was finished.

Optuna's heartbeat tells a worker that died from one that is busy. Its trial is then queued again, with the same
settings (``RetryHeartbeatStaleTrialCallback``).
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import optuna
from filelock import FileLock
from optuna.storages import RDBStorage, RetryHeartbeatStaleTrialCallback
from optuna.trial import FrozenTrial, TrialState
from sqlalchemy.exc import SQLAlchemyError

from lightning_dqn.apps.command import Refusal, errors_only
from lightning_dqn.apps.space import Domain, Search, Value, shown
from lightning_dqn.apps.trial import fit, settings

FILE = "study.db"
_NAME = "search"
_SQLITE = b"SQLite format 3\x00"
_PATIENCE = 60  # seconds that one worker waits for another to have written
_DONE = (TrialState.COMPLETE, TrialState.PRUNED)


class Plan(NamedTuple):
    """All that a worker has to know.

    Attributes:
        folder: Of the study and of its runs.
        args: Of ``fit``, without what is searched.
        search: What is searched, and how.
        grace: Seconds without a heartbeat after which a worker counts as dead.
        storage: Address of a database instead of the file in the folder.
    """

    folder: Path
    args: list[str]
    search: Search
    grace: int
    storage: str | None = None

    @property
    def lock(self) -> FileLock:
        """Held by the one worker that looks at how far the study is, and takes a trial."""
        return FileLock(self.folder / f"{FILE}.lock", timeout=_PATIENCE)


class Progress(NamedTuple):
    """How far a study is.

    Attributes:
        done: Trials that ended, pruned ones and those that failed by an error included.
        open: Trials that run or wait to be run again.
        waiting: Of those, the ones that wait.
    """

    done: int
    open: int
    waiting: int


def open_study(plan: Plan) -> optuna.Study:
    """The study in a folder, made if there is none.

    Raises:
        Refusal: If there is something else, or it is the study of another search; nothing is changed then.
    """
    path = plan.folder / FILE
    advice = "move it away, or choose another folder by --output"
    where = str(path) if plan.storage is None else "the database of --storage"  # whose address has a password
    try:
        plan.folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Refusal(f"--output: {plan.folder} cannot be a folder ({error.strerror}); {advice}") from error
    _quiet()
    try:
        if plan.storage is None and path.exists() and path.read_bytes()[: len(_SQLITE)] not in (_SQLITE, b""):
            raise Refusal(f"study: {path} is no SQLite file; {advice}")
        with plan.lock:
            storage = RDBStorage(
                plan.storage or f"sqlite:///{path}",
                engine_kwargs={} if plan.storage else {"connect_args": {"timeout": _PATIENCE}},
                heartbeat_interval=max(1, plan.grace // 4),
                grace_period=plan.grace,
                heartbeat_stale_trial_callback=_again,
            )
            study = optuna.create_study(
                storage=storage,
                study_name=str(plan.folder.absolute()) if plan.storage else _NAME,  # a database may have others
                direction="maximize",
                pruner=_pruner(plan.search),
                load_if_exists=True,
            )
            made_for = {"space": plan.search.space, "args": plan.args, "seeds": plan.search.seeds}
            _check_that_it_is_the_same(study, json.loads(json.dumps(made_for)), where, advice)
    except (SQLAlchemyError, ImportError, OSError, RuntimeError, AssertionError, ValueError) as error:
        if isinstance(error, Refusal):
            raise
        raise Refusal(f"study: {where} cannot be read ({str(error).splitlines()[0]}); {advice}") from error
    return study


def work(plan: Plan) -> None:
    """Runs trials until there are enough, with whoever else works on the same study.

    Args:
        plan: What to do.
    """
    with errors_only("lightning.pytorch", "lightning.fabric"):
        _work(open_study(plan), plan)


def _work(study: optuna.Study, plan: Plan) -> None:
    lock = plan.lock
    while True:
        # between a worker's look at how many trials there are and its taking one nobody else may look
        with lock:
            now = _progress(study)
            if now.done >= plan.search.num_trials:
                return
            if now.waiting or now.done + now.open < plan.search.num_trials:
                study.sampler = _sampler(plan.search, _drawn(study))
                _one_trial(study, plan, lock.release)
                continue
        # the last trials are with others, who may die
        time.sleep(1.0)


def _one_trial(study: optuna.Study, plan: Plan, begun: Callable[[], None]) -> None:
    def objective(trial: optuna.Trial) -> float:
        try:
            return _objective(trial, plan, begun)
        except KeyboardInterrupt:
            # queued before it ends: if it were neither open nor queued, another worker would draw a trial too many
            _again(study, study.trials[trial.number])
            raise

    study.optimize(
        objective,
        n_trials=1,
        catch=(Exception,),
        callbacks=[lambda study, trial: _say(study, trial, plan.search.num_trials)],
    )


def _again(study: optuna.Study, trial: FrozenTrial) -> None:
    # half-drawn settings are drawn anew by the next trial, except a grid's, which never gives a point twice
    is_whole = "begun" in trial.user_attrs or "grid_id" in trial.system_attrs
    if is_whole and "error" not in trial.user_attrs:
        RetryHeartbeatStaleTrialCallback()(study, trial)


def _drawn(study: optuna.Study) -> int:
    first = (trial for trial in study.trials if RetryHeartbeatStaleTrialCallback.retried_trial_number(trial) is None)
    return sum("begun" in trial.user_attrs for trial in first)


def _quiet() -> None:
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    warnings.filterwarnings("ignore", category=optuna.exceptions.ExperimentalWarning)


def _objective(trial: optuna.Trial, plan: Plan, begun: Callable[[], None]) -> float:
    values = {name: _suggest(trial, name, domain) for name, domain in plan.search.space.items()}
    trial.set_user_attr("begun", trial.number)
    begun()
    scores: list[float] = []
    validations = 0

    def report(score: float) -> bool:
        nonlocal validations
        validations += 1
        trial.report(float(np.mean([*scores, score])), validations)
        return not trial.should_prune()

    try:
        for seed in range(plan.search.seeds):
            folder = plan.folder / f"trial_{trial.number}" / f"seed_{seed}"
            score, whole = fit([*plan.args, *settings(values)], folder, seed, report)
            if not whole:
                raise optuna.TrialPruned
            scores.append(score)
    except optuna.TrialPruned:
        raise
    except Exception as error:
        trial.set_user_attr("error", f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}")
        raise
    trial.set_user_attr("scores", scores)
    return float(np.mean(scores))


def _suggest(trial: optuna.Trial, name: str, domain: Domain) -> Value:
    if domain.choices is not None:
        chosen: Value = trial.suggest_categorical(name, domain.choices)
        return chosen
    if domain.is_whole:
        step = 1 if domain.step is None else int(domain.step)
        return trial.suggest_int(name, int(domain.low), int(domain.high), step=step, log=domain.log)
    return trial.suggest_float(name, domain.low, domain.high, step=domain.step, log=domain.log)


def _sampler(search: Search, drawn: int) -> optuna.samplers.BaseSampler:
    if search.sampler == "grid":
        return optuna.samplers.GridSampler(search.grid, seed=search.seed)  # which shuffles the grid
    # a draw hangs on how many there were, so who runs it and how often the search was interrupted has no part in it
    seed = int(np.random.SeedSequence([search.seed, drawn]).generate_state(1)[0])
    if search.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    return optuna.samplers.TPESampler(seed=seed, constant_liar=True)


def _pruner(search: Search) -> optuna.pruners.BasePruner:
    if search.pruner == "none":
        return optuna.pruners.NopPruner()
    if search.pruner == "median":
        return optuna.pruners.MedianPruner()
    return optuna.pruners.HyperbandPruner()


def _progress(study: optuna.Study) -> Progress:
    optuna.storages.fail_stale_trials(study)
    trials = study.trials
    for trial in trials:
        # seen under the lock, it died before it had its settings, or before it ran with those of another
        if trial.state == TrialState.RUNNING and not _has_begun(trial):
            study.tell(trial.number, state=TrialState.FAIL)
            _again(study, trial)
    states = [trial.state for trial in study.trials]
    running, waiting = states.count(TrialState.RUNNING), states.count(TrialState.WAITING)
    return Progress(len(finished(study)), running + waiting, waiting)


def _has_begun(trial: FrozenTrial) -> bool:
    # a trial that is run again has the attributes of the one that died
    return bool(trial.user_attrs.get("begun") == trial.number)


def finished(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that ended, pruned ones and those that failed by an error included."""
    return [trial for trial in study.trials if trial.state in _DONE or _has_failed(trial)]


def failed(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that ended by an error; one that only was interrupted, or is queued again, is none of them."""
    return [trial for trial in study.trials if _has_failed(trial)]


def _has_failed(trial: FrozenTrial) -> bool:
    return trial.state == TrialState.FAIL and "error" in trial.user_attrs


def best_of(study: optuna.Study) -> FrozenTrial | None:
    """The trial with the highest value among those that went to their end."""
    return max(complete(study), key=lambda trial: trial.values[0], default=None)


def complete(study: optuna.Study) -> list[FrozenTrial]:
    """Trials that went to their end; Optuna gives pruned ones a value as well, that of their last validation."""
    return [trial for trial in study.trials if trial.state == TrialState.COMPLETE]


def _say(study: optuna.Study, trial: FrozenTrial, of: int) -> None:
    what = str(trial.user_attrs.get("error", "failed"))
    if trial.state in _DONE:
        what = "pruned" if trial.state == TrialState.PRUNED else f"{trial.values[0]:.1f}"
    values = ", ".join(f"{name.rpartition('.')[2]} {shown(value)}" for name, value in trial.params.items())
    best = best_of(study)
    so_far = "" if best is None else f"; best {best.value:.1f} in trial {best.number}"
    print(f"trial {trial.number}: {what} ({values}){so_far}; {len(finished(study))} of {of}", flush=True)


def _check_that_it_is_the_same(study: optuna.Study, made_for: dict[str, Any], where: str, advice: str) -> None:
    before = study.user_attrs
    if not before:
        for name, value in made_for.items():
            study.set_user_attr(name, value)
        return
    different = next((name for name, value in made_for.items() if before.get(name) != value), None)
    if different is not None:
        raise Refusal(f"study: {where} is of another search (its {different} is not this one's); {advice}")

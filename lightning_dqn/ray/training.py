"""Ray Train: the learners of one run on the machines of a cluster, restarted from their last checkpoint."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from ray.exceptions import RayActorError
from ray.train.v2.api.callback import UserCallback
from ray.train.v2.api.config import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.train.v2.torch.torch_trainer import TorchTrainer

from lightning_dqn.apps.command import Refusal, at_least
from lightning_dqn.cli import Parsed
from lightning_dqn.collector import ExperienceCollector
from lightning_dqn.complaints import last_line
from lightning_dqn.ray.head import Cluster
from lightning_dqn.ray.learners import Orders, learn
from lightning_dqn.ray.line import open_line, print_said
from lightning_dqn.ray.worker import FieldError

_SETTINGS = {
    "RAY_CHDIR_TO_TRIAL_DIR": "0",  # paths of a configuration are relative to where the command was given
    "RAY_TRAIN_ENABLE_WORKER_STRUCTURED_LOGGING": "0",  # nor would whatever is reported be to the user's taste
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",  # what is printed would be logged as well
}
_LOOK_EVERY = 0.5  # seconds between two looks at signals and at the head


class Fitted(NamedTuple):
    """What a run on Ray came to.

    Attributes:
        folder: Of the run, with its curves; ``None`` without a logger.
        checkpoint: The last full one, from which it can go on; ``None`` if none was written.
        metrics: The last of each, by name.
        code: 0, or with which the command is to end after a signal: 130 after Ctrl-C, 143 after SIGTERM.
    """

    folder: Path | None
    checkpoint: Path | None
    metrics: Mapping[str, float]
    code: int


class _ParsedFit(Parsed):
    """The settings of a ``fit``.

    Args:
        args: Of the command line, without ``fit``.
        collector: What the section ``collect`` configures.
    """

    def __init__(self, args: Sequence[str], collector: type[ExperienceCollector]) -> None:
        self.collector = collector
        super().__init__(["fit", *args])


def fit_on_ray(
    config: str | Path | Sequence[str],
    num_workers: int = 2,
    *,
    cpus: float = 1.0,
    gpus: float = 0.0,
    storage: str | Path = "runs",
    max_failures: int = 3,
    collector: type[ExperienceCollector] = ExperienceCollector,
) -> Fitted:
    """Trains a configuration of ``lightning-dqn fit`` with several learners on a Ray cluster.

    Each worker is a rank of a DDP run: environments, replay and random numbers are its own, the network is one (see
    ``docs/scaling.md``). Whatever kills a worker, all are started again, and go on exactly from the last checkpoint of
    the run. The first Ctrl-C or SIGTERM has the run saved and ended, a second Ctrl-C ends it at once.

    Args:
        config: A file, the bare name of a shipped one, or the arguments of ``fit``.
        num_workers: Learners.
        cpus: CPU cores that Ray reserves for each.
        gpus: GPUs that Ray gives to each.
        storage: A folder that all machines see, as the run's own has to be.
        max_failures: How often the learners are started again; -1 for any number.
        collector: What the section ``collect`` configures.

    Raises:
        Refusal: If a setting cannot work, or the cluster is too small for it.
        HeadLost: If the head of the cluster is gone; the run can go on from its last checkpoint.
        ray.train.TrainingFailedError: If the learners have failed too often.
    """
    at_least(1, "--num_workers", num_workers)
    at_least(-1, "--max_failures", max_failures)
    args = ["--config", str(config)] if isinstance(config, str | Path) else list(config)
    try:
        checkpoint = _ParsedFit(args, collector).config["fit"].get("ckpt_path")
    except ValueError as error:
        raise Refusal(str(error)) from error
    if checkpoint:  # `last` is the last as of now
        args.append(f"--ckpt_path={Path(checkpoint).absolute()}")
    each = {"CPU": cpus} | ({"GPU": gpus} if gpus else {})
    Path(storage).mkdir(parents=True, exist_ok=True)
    with (
        Cluster() as cluster,
        tempfile.TemporaryDirectory(prefix="ray_", dir=storage, ignore_cleanup_errors=True) as own,
    ):
        cluster.require(num_workers, each, "--num_workers")
        line = open_line()
        for name, value in _SETTINGS.items():
            os.environ.setdefault(name, value)
        trainer = TorchTrainer(
            learn,
            train_loop_config=Orders(args, str(Path.cwd()), collector, line)._asdict(),
            scaling_config=ScalingConfig(num_workers=num_workers, use_gpu=bool(gpus), resources_per_worker=each),
            run_config=RunConfig(
                name="train",
                storage_path=str(Path(own).absolute()),
                failure_config=FailureConfig(max_failures=max_failures),
                checkpoint_config=CheckpointConfig(num_to_keep=1),
                callbacks=[_Reasons(line)],
                worker_runtime_env={"env_vars": _environment()},
                logging_config=LoggingConfig(log_level="ERROR"),
            ),
        )
        try:
            result = _Running(trainer, cluster, line).wait()
        except TrainingFailedError as error:
            reason = _field_error(error)
            if reason is None:
                raise
            raise Refusal(str(reason)) from error
        said = result.return_value
    return Fitted(
        **{name: None if said[name] is None else Path(said[name]) for name in ("folder", "checkpoint")},
        metrics=said["metrics"],
        code=said["code"],
    )


class _Running:
    """A training under way: signals of this process reach it, and the loss of its head ends the wait for it."""

    def __init__(self, trainer: TorchTrainer, cluster: Cluster, line: Any) -> None:
        self._cluster, self._line = cluster, line
        self._heard: list[int] = []
        self._result: Future[Any] = Future()
        # not in the main thread: Ray's own Ctrl-C would throw the last steps away
        threading.Thread(target=self._run, args=[trainer], daemon=True).start()

    def wait(self) -> Any:
        """Ray's result.

        Raises:
            KeyboardInterrupt: At the second Ctrl-C.
            HeadLost: If the head is gone.
        """
        told = 0
        with self._listening():
            while not self._result.done():
                if len(self._heard) > told:
                    told += 1
                    self._tell(self._heard[told - 1], told)
                self._cluster.require_head("go on with --ckpt_path last")
                print_said(self._line)
                threading.Event().wait(_LOOK_EVERY)
            print_said(self._line)
            return self._result.result()

    def _run(self, trainer: TorchTrainer) -> None:
        try:
            self._result.set_result(trainer.fit())
        except BaseException as error:
            self._result.set_exception(error)

    def _tell(self, number: int, times: int) -> None:
        if times > 1 and number == signal.SIGINT:
            raise KeyboardInterrupt
        again = "; press Ctrl-C again to stop at once" if number == signal.SIGINT else ""
        print(f"\nStopping after this step{again}.", flush=True)
        self._line.ring.remote(number)

    @contextmanager
    def _listening(self) -> Iterator[None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in before:
            signal.signal(number, lambda heard, frame: self._heard.append(heard))
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


class _Reasons(UserCallback):
    """Says what a restart is for, and sees to it that there is none where it would not help."""

    def __init__(self, line: Any) -> None:
        self._line = line

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:
        """Called in the process that watches the workers."""
        for error in worker_exceptions.values():
            wrong = _field_error(error)
            if wrong is not None:
                raise wrong
        rank, error = min(worker_exceptions.items())
        reason = "its process died" if isinstance(error, RayActorError) else last_line(error)
        self._line.say.remote(
            time.time_ns(), f"learner {rank} failed ({reason}); all begin again from the last checkpoint\n"
        )


def _field_error(error: BaseException | None) -> FieldError | None:
    """The setting that is to blame, wherever Ray has packed it; ``None`` if none is."""
    if error is None or isinstance(error, FieldError):
        return error
    inside = [error.__cause__, *(getattr(error, name, None) for name in ("controller_failure", "_base_exc", "cause"))]
    inside += getattr(error, "worker_failures", {}).values()
    found = (_field_error(each) for each in inside if isinstance(each, BaseException) and each is not error)
    return next((each for each in found if each is not None), None)


def _environment() -> dict[str, str]:
    """What of this process's environment a run looks at, wherever it runs."""
    return {name: os.environ[name] for name in ("WANDB_MODE",) if name in os.environ}

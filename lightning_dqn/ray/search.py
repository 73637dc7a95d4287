"""A search whose workers run on the machines of a Ray cluster."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import ray
from ray.exceptions import RayError

from lightning_dqn.apps.study import Plan
from lightning_dqn.complaints import last_line
from lightning_dqn.ray.head import Cluster
from lightning_dqn.ray.line import open_line, print_said, speaking
from lightning_dqn.ray.worker import begin_in

_LOOK_EVERY = 1.0  # seconds between two looks at the head
_RETRIES = 3  # of a worker that died; its trial is queued again by whoever looks next


def on_ray(work: Callable[[Plan], None], plan: Plan, workers: int) -> None:
    """Has workers share a study, wherever in the cluster there is a core for each.

    Args:
        work: What each does.
        plan: What it is told; the folder has to be one that all machines see.
        workers: How many.

    Raises:
        Refusal: If the cluster is too small.
        HeadLost: If its head is gone.
        KeyboardInterrupt: After Ctrl-C, when all workers have finished their step.
    """
    with Cluster() as cluster:
        cluster.require(workers, {"CPU": 1.0}, "--workers")
        line = open_line()
        task = ray.remote(num_cpus=1, max_retries=_RETRIES)(_work)
        running = [task.remote(work, plan, str(Path.cwd()), line) for _ in range(workers)]
        try:
            while running:
                ended, running = ray.wait(running, timeout=_LOOK_EVERY)
                print_said(line)
                _say_why(ended)
                cluster.require_head("the same command goes on")
        except KeyboardInterrupt:
            for each in running:
                ray.cancel(each)
            ray.wait(running, num_returns=len(running))
            print_said(line)
            raise


def _say_why(ended: list[Any]) -> None:
    for each in ended:
        try:
            ray.get(each)
        except RayError as error:
            print(f"a worker has ended: {last_line(error)}", flush=True)


def _work(work: Callable[[Plan], None], plan: Plan, folder: str, line: Any) -> None:
    begin_in(folder)
    with speaking(line):
        work(plan)

"""Prioritised replay against that of cpprb, Tianshou and TorchRL: time of a draw and of an addition, and memory.

A draw samples and gathers 256 transitions of 4-float observations in proportion to their priorities, and writes random
new priorities to what it sampled; an addition stores 64 transitions. Every library runs on one thread, in a process
and, if it is not this one, in a virtual environment of its own, which the first run makes. The processes take turns. A
figure is the median over all repetitions of the median time of a call, beside the range of those medians.

Draws always land on different rows. Buffers are full, and their priorities random. Every library gets errors, and
returns batches, in the arrays that are its own. Uniform sampling is the floor: the same gather, but no priorities.

    python benchmarks/replay.py
    python benchmarks/replay.py --sizes 1000000 --repetitions 15 --peers cpprb
"""

from __future__ import annotations

import argparse
import gc
import importlib
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from peers import CACHE, Worker, interpreter, serve

BATCH = 256
ADDED = 64
ALPHA, BETA, EPSILON = 0.6, 0.4, 1e-6
CHUNK = 100_000
WARM_UP = 20
MEASURABLE = 1_000_000  # transitions beside which the rest of a process does not count

Errors = NDArray[np.float32]
Rows = dict[str, NDArray[Any]]


def make_rows(count: int, rng: np.random.Generator) -> Rows:
    """Random transitions under the names most libraries use."""
    return {
        "obs": rng.random((count, 4), np.float32),
        "act": rng.integers(2, size=count),
        "rew": rng.random(count, np.float32),
        "done": rng.random(count) < 0.01,
        "next_obs": rng.random((count, 4), np.float32),
    }


class Subject(NamedTuple):
    """A full buffer of one library.

    Attributes:
        draw: Takes errors, samples and gathers a batch, writes its priorities, and returns the number of rows in it.
        add: Stores :data:`ADDED` transitions.
        native: Makes TD errors what ``draw`` takes, outside the measurement.
    """

    draw: Callable[[Any], int]
    add: Callable[[], object]
    native: Callable[[Errors], Any] = np.asarray


def uniform(size: int, rng: np.random.Generator, kind: str = "ReplayBuffer") -> Subject:
    """This package's uniform buffer, or its buffer of another kind."""
    import torch

    import lightning_dqn
    from lightning_dqn.transition import Transition

    def transition(count: int) -> Transition[NDArray[Any]]:
        rows = make_rows(count, rng)
        return Transition(rows["obs"], rows["act"], rows["rew"], 0.99 * ~rows["done"], rows["next_obs"])

    torch.set_num_threads(1)
    buffer: lightning_dqn.ReplayBuffer = getattr(lightning_dqn, kind)(size)
    buffer.allocate((4,), np.dtype(np.float32))
    for start in range(0, size, CHUNK):
        count = min(CHUNK, size - start)
        buffer.add(transition(count))
        buffer.update_priorities(torch.arange(start, start + count), torch.rand(count))
    added = transition(ADDED)

    def draw(errors: torch.Tensor) -> int:
        batch = buffer.sample(1, BATCH, rng)
        buffer.update_priorities(batch.index, errors)
        return batch.transition.observation.shape[1]

    return Subject(draw, lambda: buffer.add(added), lambda errors: torch.from_numpy(errors).view(1, -1))


def prioritized(size: int, rng: np.random.Generator) -> Subject:
    """This package's prioritised buffer."""
    return uniform(size, rng, "PrioritizedReplayBuffer")


def cpprb(size: int, rng: np.random.Generator) -> Subject:
    """Segment trees in C++: one for sums and one for minima."""
    fields = {"obs": {"shape": 4}, "act": {"dtype": np.int64}, "rew": {}, "done": {}, "next_obs": {"shape": 4}}
    kind = importlib.import_module("cpprb").PrioritizedReplayBuffer
    buffer = kind(size, fields, alpha=ALPHA, eps=EPSILON)
    for start in range(0, size, CHUNK):
        count = min(CHUNK, size - start)
        buffer.add(**make_rows(count, rng), priorities=rng.random(count, np.float32))
    added = make_rows(ADDED, rng)

    def draw(errors: Errors) -> int:
        batch = buffer.sample(BATCH, beta=BETA)
        buffer.update_priorities(batch["indexes"], errors)
        return len(batch["obs"])

    return Subject(draw, lambda: buffer.add(**added))


def tianshou(size: int, rng: np.random.Generator) -> Subject:
    """A sum tree compiled by numba, over one ring for each of the environments that are added at once."""
    importlib.import_module("torch").set_num_threads(1)
    data = importlib.import_module("tianshou.data")

    def batch(count: int) -> Any:
        rows = make_rows(count, rng)
        rows |= {"terminated": rows["done"], "truncated": np.zeros_like(rows["done"])}
        rows |= {"rew": rows["rew"].astype(np.float64), "done": rows["done"].copy()}
        return data.Batch(rows | {"obs_next": rows.pop("next_obs")})

    size = -(-size // ADDED) * ADDED
    buffer = data.PrioritizedVectorReplayBuffer(size, ADDED, alpha=ALPHA, beta=BETA)
    buffer.set_batch(batch(size))
    for k, ring in enumerate(buffer.buffers):  # as after adding all of it, which would take minutes
        ring._size = buffer._lengths[k] = ring.maxsize
    for start in range(0, size, CHUNK):
        index = np.arange(start, min(start + CHUNK, size))
        buffer.update_weight(index, rng.random(len(index), np.float32))
    added = batch(ADDED)

    def draw(errors: Errors) -> int:
        drawn, index = buffer.sample(BATCH)
        buffer.update_weight(index, errors)
        return len(drawn.obs)

    return Subject(draw, lambda: buffer.add(added))


def torchrl(size: int, rng: np.random.Generator) -> Subject:
    """Segment trees in C++ beside a storage of tensors."""
    if hasattr(
        os, "RTLD_LAZY"
    ):  # or its extension may not load: it looks for symbols of another torch that it never uses
        sys.setdlopenflags(os.RTLD_LAZY)
    torch = importlib.import_module("torch")
    torch.set_num_threads(1)
    tensordict = importlib.import_module("tensordict").TensorDict
    data = importlib.import_module("torchrl.data")
    samplers = importlib.import_module("torchrl.data.replay_buffers.samplers")

    def batch(count: int) -> Any:
        rows = {name: torch.from_numpy(field) for name, field in make_rows(count, rng).items()}
        return tensordict(rows, batch_size=[count])

    buffer = data.ReplayBuffer(
        storage=data.LazyTensorStorage(size),
        sampler=samplers.PrioritizedSampler(size, alpha=ALPHA, beta=BETA, eps=EPSILON),
        batch_size=BATCH,
    )
    for start in range(0, size, CHUNK):
        count = min(CHUNK, size - start)
        buffer.extend(batch(count))
        buffer.update_priority(torch.arange(start, start + count), torch.rand(count))
    added = batch(ADDED)

    def draw(errors: Any) -> int:
        drawn, info = buffer.sample(return_info=True)
        buffer.update_priority(info["index"], errors)
        return len(drawn)

    return Subject(draw, lambda: buffer.extend(added), torch.from_numpy)


Make = Callable[[int, np.random.Generator], Subject]
OURS: dict[str, Make] = {"prioritized": prioritized, "uniform": uniform}
PEERS: dict[str, Make] = {"cpprb": cpprb, "tianshou": tianshou, "torchrl": torchrl}
TORCH = "torch"  # in the release that this package runs with
REQUIREMENTS = {
    "cpprb": ["cpprb==11.0.0"],
    "tianshou": [TORCH, "tianshou==2.0.1"],
    "torchrl": [TORCH, "torchrl==0.14.1", "tensordict==0.14.3"],
}
COUNTING = "lightning-dqn", "cpprb", "tianshou", "torchrl", "tensordict", "torch", "numba", "numpy"


def memory() -> int:
    """Bytes of this process that are in memory; 0 where the system does not say."""
    gc.collect()
    pages = Path("/proc/self/statm")
    return int(pages.read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") if pages.exists() else 0


class Measurements:
    """What a worker can be asked for.

    Args:
        make: Makes a full buffer of the library.
    """

    def __init__(self, make: Make) -> None:
        self.make = make
        self.rng = np.random.default_rng(0)
        self.subjects: dict[int, Subject] = {}

    def __call__(self, do: str, **arguments: Any) -> Any:
        """Answers one request: the name of a method and its arguments."""
        return getattr(self, do)(**arguments)

    def versions(self) -> str:
        """Versions of what decides the speed."""
        found = {str(package.metadata["Name"]).lower(): package.version for package in metadata.distributions()}
        return ", ".join(f"{name} {found[name]}" for name in COUNTING if name in found)

    def build(self, size: int) -> tuple[float, float]:
        """Makes a full buffer; returns the seconds that took, and its bytes per transition."""
        before = memory()
        start = time.monotonic()
        self.subjects[size] = self.make(size, self.rng)
        return time.monotonic() - start, (memory() - before) / size

    def draw(self, size: int, calls: int) -> float:
        """Median microseconds of a draw."""
        subject = self.subjects[size]
        errors = [subject.native(error) for error in self.rng.random((WARM_UP + calls, BATCH), np.float32)]
        assert subject.draw(errors[0]) == BATCH
        return _median([_microseconds(subject.draw, error) for error in errors])

    def add(self, size: int, calls: int) -> float:
        """Median microseconds of an addition."""
        add = self.subjects[size].add
        return _median([_microseconds(add) for _ in range(WARM_UP + calls)])


def _microseconds(call: Callable[..., Any], *arguments: Any) -> float:
    start = time.perf_counter_ns()
    call(*arguments)
    return (time.perf_counter_ns() - start) / 1_000


def _median(times: list[float]) -> float:
    return statistics.median(times[WARM_UP:])


def start_workers(options: argparse.Namespace) -> dict[str, Worker]:
    """One process for each library that can be had; says which cannot."""
    torch = f"torch=={metadata.version('torch').partition('+')[0]}"
    workers = {}
    for name in (*OURS, *options.peers):
        python = Path(sys.executable)
        if name in PEERS:
            requirements = [torch if requirement == TORCH else requirement for requirement in REQUIREMENTS[name]]
            try:
                python = interpreter(name, requirements, options.peers_dir)
            except RuntimeError as error:
                print(f"{name} is left out: {error}", file=sys.stderr)
                continue
        workers[name] = Worker(python, __file__, "--worker", name)
    return workers


def build(workers: dict[str, Worker], options: argparse.Namespace) -> dict[str, dict[int, float]]:
    """Fills a buffer of every size in every worker.

    Returns:
        Bytes per transition, by name and size; a size that would take too long to fill or does not fit is missing.
    """
    built: dict[str, dict[int, float]] = {}
    for name, worker in workers.items():
        built[name] = {}
        rate = 0.0  # seconds for each transition of the size before
        for size in sorted(options.sizes):
            if rate * size > options.build_seconds:
                print(f"{name}: filling {size:,} would take about {rate * size:.0f} s, left out", file=sys.stderr)
                break
            try:
                seconds, bytes_each = worker.ask(do="build", size=size)
            except RuntimeError as error:
                print(f"{name}: {size:,} is left out: {error}", file=sys.stderr)
                break
            built[name][size] = bytes_each
            rate = seconds / size if size >= CHUNK else 0.0
    return built


def main() -> None:
    """Measures and prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, nargs="+", default=[10_000, 100_000, 1_000_000, 10_000_000])
    parser.add_argument("--add-at", type=int, default=1_000_000, help="size of the buffers that are added to")
    parser.add_argument("--repetitions", type=int, default=9)
    parser.add_argument("--calls", type=int, default=300, help="calls of which a repetition takes the median")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=list(PEERS))
    parser.add_argument("--peers-dir", type=Path, default=CACHE, help="where their virtual environments are kept")
    parser.add_argument("--build-seconds", type=float, default=60.0, help="longest time to fill one buffer")
    parser.add_argument("--worker", choices=[*OURS, *PEERS], help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        serve(Measurements((OURS | PEERS)[options.worker]))
        return
    add_at = options.add_at if options.add_at in options.sizes else max(options.sizes)

    workers = start_workers(options)
    versions = {name: worker.ask(do="versions") for name, worker in workers.items()}
    built = build(workers, options)
    draws: dict[tuple[str, int], list[float]] = {(name, size): [] for name in built for size in built[name]}
    adds: dict[str, list[float]] = {name: [] for name in built if add_at in built[name]}
    for _ in range(options.repetitions):
        for size in sorted(options.sizes):
            for name in workers:
                if size in built[name]:
                    draws[name, size].append(workers[name].ask(do="draw", size=size, calls=options.calls))
        for name in adds:
            adds[name].append(workers[name].ask(do="add", size=add_at, calls=options.calls))
    for worker in workers.values():
        worker.close()

    print(
        f"Draws of {BATCH} and additions of {ADDED} to {add_at:,}, in us; median and range of {options.repetitions} "
        f"repetitions of {options.calls} calls; Python {platform.python_version()}, one thread\n"
    )
    sizes = sorted(options.sizes)
    header = ["", *(f"draw at {size:,}" for size in sizes), "growth", f"add {ADDED}", "bytes each"]
    print("|", " | ".join(header), "|")
    print("|---" * len(header) + "|")
    for name in workers:
        cells = [_cell(draws.get((name, size), [])) for size in sizes]
        ends = draws.get((name, sizes[0])), draws.get((name, sizes[-1]))
        growth = f"{_ratio(ends[1], ends[0]):.2f}" if ends[0] and ends[1] else "-"
        largest = max(built[name], default=0)
        each = f"{built[name][largest]:.0f}" if largest >= MEASURABLE and built[name][largest] > 0 else "-"
        title = f"lightning-dqn, {name}" if name not in PEERS else name
        print("|", " | ".join([title, *cells, growth, _cell(adds.get(name, [])), each]), "|")
    print("\nGrowth: from the smallest to the largest size. Bytes: what a process grew by, at the largest size.\n")
    for name in workers:
        if name in PEERS:
            drawn = {size: (draws.get((name, size)), draws["prioritized", size]) for size in built["prioritized"]}
            ratios = [f"{_ratio(peer, own):.2f} at {size:,}" for size, (peer, own) in drawn.items() if peer]
            added = f"; additions {_ratio(adds[name], adds['prioritized']):.2f}" if name in adds else ""
            print(f"{name} over lightning-dqn, prioritized: draws {', '.join(ratios)}{added}")
    for name in workers:
        print(f"{name}: {versions[name]}")


def _cell(values: list[float]) -> str:
    return f"{statistics.median(values):.0f} ({min(values):.0f} - {max(values):.0f})" if values else "-"


def _ratio(above: list[float], below: list[float]) -> float:
    """Median of the ratios within one repetition."""
    return statistics.median(a / b for a, b in zip(above, below, strict=True))


if __name__ == "__main__":
    main()

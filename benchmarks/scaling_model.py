"""How far one learner with Ray actors goes: what each part costs here, and what follows for 1 to 10,000 actors.

Measured are the processor's seconds of the one thread that has the work, so other programs on the machine matter
little: an update with all that the Trainer does around it, an environment step of an actor, a message on its way
through Ray and into the replay. From these the model, a fluid one, takes the rate of every part alone; the slowest
decides.

    F   env steps of an iteration, with K updates: ``data.train_frequency``, ``data.gradient_steps``
    M   env steps of a message: ``collect.steps_per_message`` * ``data.num_envs``
    b   iterations between broadcasts: ``collect.broadcast_every``

    actors            N / step
    learner           1 / (K update / F + receive / M + (put + loads) / (b F))    loads: of all actors, or all messages
    network, in       bandwidth * M / bytes of a message
    network, out      bandwidth * b F / (bytes of the weights * machines)
    weight lag        N in_flight M / F + (b - 1) / 2                             in iterations; Little's law

Assumed: a core for each actor and one for the learner; machines of ``--cores`` actors; a message comes over the network
whole and once; weights go to each machine once and from the learner alone; the replay ratio K / F is held, as
``RayCollector`` does. The second half of the table asks which F keeps the actors busy, with a tenth of the learner's
time for updates at the least. Not in it: how long Ray takes to start thousands of actors, and what its head costs.

    python benchmarks/scaling_model.py --config cartpole
    python benchmarks/scaling_model.py --config atari --update-seconds 0.001 --picture docs/images/scaling_model.png
    python benchmarks/scaling_model.py --config cartpole --check 1 2
"""

from __future__ import annotations

import argparse
import math
import os
import pickle
import platform
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import ray
import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_dqn.cli import DQNCLI
from lightning_dqn.collector import ExperienceCollector
from lightning_dqn.experience.datamodule import ExperienceDataModule
from lightning_dqn.ray.actor import Actor, Blueprint, acting_copy
from lightning_dqn.ray.collector import RayCollector
from lightning_dqn.ray.messages import Inbox, Message
from lightning_dqn.shipped import find_config

_ACTORS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1_000, 2_000, 5_000, 10_000]
_LEAST = 0.1  # of the learner's time that updates get, however many actors there are
_SMALL = 200  # iterations of a run that is measured


class Costs(NamedTuple):
    """What was measured here.

    Attributes:
        update: Seconds of an update, with its share of what the Trainer does for an iteration.
        step: Seconds of an environment step of an actor, its share of making and sending a message included.
        receive: Seconds that the learner has with a message: asking for it, taking it, storing it.
        store: Of these, what the replay takes.
        put: Seconds of handing the weights to Ray.
        load: Seconds of telling an actor of them.
        bandwidth: Bytes per second into Ray's object store, 64 MiB at once.
        message: Bytes of a message.
        transition: Bytes of a transition in the replay.
        weights: Bytes of the module's state.
        process: Bytes of an actor's process.
    """

    update: float
    step: float
    receive: float
    store: float
    put: float
    load: float
    bandwidth: float
    message: float
    transition: float
    weights: float
    process: float


class Plan(NamedTuple):
    """What a configuration asks for, and where it runs.

    Attributes:
        train_frequency: Env steps of an iteration.
        gradient_steps: Updates of an iteration.
        steps: Env steps of a message.
        broadcast_every: Iterations.
        in_flight: Messages that an actor may be asked for at once.
        capacity: Transitions of the replay.
        cores: Actors of a machine.
        gigabits: Per second, of the learner's network, each way.
    """

    train_frequency: int
    gradient_steps: int
    steps: int
    broadcast_every: int
    in_flight: int
    capacity: int
    cores: int
    gigabits: float


class Prediction(NamedTuple):
    """What the model says of so many actors.

    Attributes:
        actors: How many.
        rate: Environment steps per second.
        updates: Per second.
        lag: Iterations between the weights of a message and its arrival, on average.
        bottleneck: The slowest part.
        free_rate: Environment steps per second where the replay ratio gives way instead of the actors.
        free_frequency: The ``data.train_frequency`` that this takes.
        free_bottleneck: The slowest part then.
        learner_memory: Bytes on the learner's machine: replay, and messages that wait.
        actor_memory: Bytes on a machine of actors.
    """

    actors: int
    rate: float
    updates: float
    lag: float
    bottleneck: str
    free_rate: float
    free_frequency: float
    free_bottleneck: str
    learner_memory: float
    actor_memory: float


def predict(costs: Costs, plan: Plan, actors: int, shared_cores: float = math.inf) -> Prediction:
    """The model.

    Args:
        costs: Of the parts.
        plan: Of the run.
        actors: How many.
        shared_cores: Cores that learner and actors have to share; for one machine.
    """
    machines = math.ceil(actors / plan.cores)
    bandwidth = plan.gigabits * 1e9 / 8
    learning = plan.gradient_steps * costs.update / plan.train_frequency
    between = plan.broadcast_every * plan.train_frequency  # env steps between two broadcasts
    taking = costs.receive / plan.steps + costs.put / between + costs.load * min(actors / between, 1 / plan.steps)
    rates = {
        "actors": actors / costs.step,
        "learner: updates" if learning > taking else "learner: messages": 1 / (learning + taking),
        "network, in": bandwidth * plan.steps / costs.message,
        "network, out": bandwidth * between / (costs.weights * machines),
        "cores": shared_cores / (learning + taking + costs.step),
    }
    bottleneck = min(rates, key=lambda name: rates[name])
    rate = rates[bottleneck]
    # each message may bring a request with new weights; what is left of the learner's time is for updates
    message = (costs.receive + costs.load) / plan.steps
    free = {name: rates[name] for name in ("actors", "network, in")} | {"learner: messages": (1 - _LEAST) / message}
    free_bottleneck = min(free, key=lambda name: free[name])
    free_rate = free[free_bottleneck]
    iteration = plan.gradient_steps * costs.update + costs.put / plan.broadcast_every
    free_frequency = max(
        iteration / (1 / free_rate - message),
        free_rate * costs.weights * machines / (bandwidth * plan.broadcast_every),
    )
    return Prediction(
        actors,
        rate,
        rate * plan.gradient_steps / plan.train_frequency,
        actors * plan.in_flight * plan.steps / plan.train_frequency + (plan.broadcast_every - 1) / 2,
        bottleneck,
        free_rate,
        free_frequency,
        free_bottleneck,
        plan.capacity * costs.transition + actors * plan.in_flight * costs.message,
        min(actors, plan.cores) * costs.process + costs.weights,
    )


class _Timed(ExperienceCollector):
    """The collector, which leaves out of the processor's time what it takes itself."""

    collecting = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        began = time.thread_time()
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        self.collecting += time.thread_time() - began


class _Clock(Callback):
    """When iterations end, after the first ones."""

    def __init__(self) -> None:
        self.wall: list[float] = []
        self.processor: list[float] = []
        self.steps: list[int] = []
        self.collected: list[float] = []
        self.lag: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.wall.append(time.perf_counter())
        self.processor.append(time.thread_time())
        self.steps.append(trainer.datamodule.env_steps)  # type: ignore[attr-defined]
        collectors = [each for each in trainer.callbacks if isinstance(each, _Timed)]  # type: ignore[attr-defined]
        self.collected.extend(each.collecting for each in collectors)
        lag = trainer.callback_metrics.get("collect/weight_lag")
        if lag is not None:
            self.lag.append(float(lag))


def parse(config: str) -> tuple[LightningModule, ExperienceDataModule]:
    """Module and data of a configuration, in which next to nothing is kept.

    Args:
        config: A file, or the bare name of a shipped one.
    """
    sys.argv[1:] = []
    cli = DQNCLI(["--config", find_config(config), "--trainer.logger=false", "--seed_everything=1"], run=False)
    return cli.model, cli.datamodule


def train(config: str, collector: ExperienceCollector, iterations: int = _SMALL) -> _Clock:
    """A run of so many iterations.

    Args:
        config: Which.
        collector: Where its experience comes from.
        iterations: How many.
    """
    module, data = parse(config)
    data.learning_starts = max(data.batch_size, 1_000)
    clock = _Clock()
    Trainer(
        max_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_train_batches=iterations,
        limit_val_batches=0,
        num_sanity_val_steps=0,
        gradient_clip_val=10.0,
        callbacks=[collector, clock],
    ).fit(module, datamodule=data)
    return clock


def seconds(work: Callable[[], Any], least: float = 1.0) -> float:
    """Processor's seconds of this thread for something, over and over.

    Args:
        work: What.
        least: Seconds to go on for.
    """
    work()
    began, times = time.thread_time(), 0
    end = time.perf_counter() + least
    while time.perf_counter() < end:
        work()
        times += 1
    return (time.thread_time() - began) / times


class _Echo:
    def answer(self) -> int:
        return 1


def measure(config: str, collector: RayCollector) -> tuple[Costs, Plan]:
    """What the parts cost on this machine.

    Args:
        config: Which.
        collector: Whose arguments are those of the run.
    """
    clock = train(config, _Timed())
    half = len(clock.wall) // 2
    spent = clock.processor[-1] - clock.processor[half] - clock.collected[-1] + clock.collected[half]
    module, data = parse(config)
    update = spent / (len(clock.wall) - 1 - half) / data.gradient_steps

    data.prepare_data()
    data.open_buffer()
    blueprint = Blueprint(
        data.without_experience(), acting_copy(module), collector.explorer, 1, (1, 0), data.buffer.has_priorities
    )
    actor, messages, steps = Actor(blueprint, 0, 0), [], collector.steps_per_message
    end, began, taken = time.perf_counter() + 3.0, time.thread_time(), 0
    while time.perf_counter() < end:
        messages.append(actor.explore(steps, 1_000_000, 100))
        taken += messages[-1].env_steps
    step = (time.thread_time() - began) / taken
    store = _store(data, messages)

    message = messages[-1]
    put_message = seconds(lambda: ray.put(message))
    known = ray.put(message)
    get_message = seconds(lambda: ray.get(known))
    echo: Any = ray.remote(_Echo).options(num_cpus=0).remote()
    ask = seconds(lambda: ray.get(echo.answer.remote()))
    load = seconds(lambda: ray.get([echo.answer.remote() for _ in range(100)])) / 100
    state = {name: tensor.cpu() for name, tensor in module.state_dict().items()}
    much = torch.zeros(2**26, dtype=torch.uint8).numpy()
    began = time.perf_counter()
    for _ in range(8):
        ray.put(much)
    bandwidth = 8 * much.nbytes / (time.perf_counter() - began)
    real: Any = ray.remote(Actor).options(num_cpus=0).remote(ray.put(blueprint), 0, 0)
    ray.get(real.act_at_random.remote(steps))
    process: float = ray.get(real.__ray_call__.remote(_resident))
    ray.kill(real)
    rows = data.buffer.state_arrays()
    costs = Costs(
        update=update,
        step=step + put_message / message.env_steps,
        receive=ask + get_message + store,
        store=store,
        put=seconds(lambda: ray.put(state)),
        load=load,
        bandwidth=bandwidth,
        message=sum(len(pickle.dumps(each, protocol=5)) for each in messages) / len(messages),
        transition=sum(array.nbytes for array in rows.values()) / max(1, len(data.buffer)),
        weights=sum(tensor.nbytes for tensor in state.values()),
        process=process,
    )
    plan = Plan(
        data.train_frequency,
        data.gradient_steps,
        steps * data.num_envs,
        collector.broadcast_every,
        collector.in_flight,
        data.buffer.capacity,
        cores=32,
        gigabits=10.0,
    )
    return costs, plan


def _store(data: ExperienceDataModule, messages: Sequence[Message]) -> float:
    inbox, began = Inbox(0, data.num_envs), time.thread_time()
    for message in messages:
        inbox.store(message, data.buffer)
    return (time.thread_time() - began) / len(messages)


def _resident(actor: Any) -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def check(config: str, costs: Costs, plan: Plan, collector: RayCollector, actors: int) -> str:
    """A row: what the model says of a run on this machine, and what it came to.

    Args:
        config: Which.
        costs: Of the parts.
        plan: Of the run.
        collector: Whose arguments are those of the run.
        actors: How many.
    """
    like = {name: getattr(collector, name) for name in ("steps_per_message", "broadcast_every", "in_flight")}
    before = os.getloadavg()[0]
    clock = train(config, RayCollector(num_actors=actors, **like), 4 * _SMALL)
    half = len(clock.wall) // 2
    rate = (clock.steps[-1] - clock.steps[half]) / (clock.wall[-1] - clock.wall[half])
    said = predict(costs, plan, actors, shared_cores=os.cpu_count() or 1)
    lag = sum(clock.lag[half:]) / max(1, len(clock.lag[half:]))
    return (
        f"| {actors} | {said.rate:,.0f} | {rate:,.0f} | {rate / said.rate:.2f} | {said.lag:.1f} | {lag:.1f} | "
        f"{said.bottleneck} | {before:.1f} |"
    )


def table(costs: Costs, plan: Plan) -> str:
    """Predictions in Markdown.

    Args:
        costs: Of the parts.
        plan: Of the run.
    """
    lines = [
        "| actors | env steps/s | updates/s | weight lag | bottleneck | or: env steps/s | train_frequency | updates/s "
        "| bottleneck | learner's memory | a machine of actors |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for said in (predict(costs, plan, actors) for actors in _ACTORS):
        held = f"{said.rate:,.0f} | {said.updates:,.0f} | {said.lag:,.0f} | {said.bottleneck}"
        updates = said.free_rate * plan.gradient_steps / said.free_frequency
        free = f"{said.free_rate:,.0f} | {said.free_frequency:,.0f} | {updates:,.0f} | {said.free_bottleneck}"
        memory = f"{_size(said.learner_memory)} | {_size(said.actor_memory)}"
        lines.append(f"| {said.actors:,} | {held} | {free} | {memory} |")
    return "\n".join(lines)


def _size(amount: float) -> str:
    return f"{amount / 1e9:,.1f} GB" if amount >= 1e8 else f"{amount / 1e6:,.1f} MB"


def draw(costs: Costs, plan: Plan, path: Path, title: str) -> None:
    """Env steps per second over actors: what is reached, and what each part alone would allow.

    Args:
        costs: Of the parts.
        plan: Of the run; both networks are drawn.
        path: Of the picture.
        title: Of the picture.
    """
    import matplotlib as mpl

    mpl.use("agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    axes.plot(_ACTORS, [each / costs.step for each in _ACTORS], ":", color="0.5", label="actors alone")
    for gigabits, style in ((10.0, "-"), (100.0, "--")):
        here = plan._replace(gigabits=gigabits)
        held = [predict(costs, here, each).rate for each in _ACTORS]
        free = [predict(costs, here, each).free_rate for each in _ACTORS]
        name = f"{gigabits:g} Gbit/s"
        axes.plot(_ACTORS, held, style, color="C0", label=f"replay ratio held, {name}")
        axes.plot(_ACTORS, free, style, color="C1", label=f"replay ratio gives way, {name}")
    axes.set(xscale="log", yscale="log", xlabel="actors", ylabel="environment steps per second", title=title)
    axes.grid(alpha=0.3)
    figure.legend(loc="outside right upper", frameon=False)
    figure.savefig(path, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--config", default="cartpole")
    parser.add_argument("--steps-per-message", type=int, default=8)
    parser.add_argument("--broadcast-every", type=int, default=8)
    parser.add_argument("--in-flight", type=int, default=2)
    parser.add_argument("--cores", type=int, default=32, help="actors of a machine")
    parser.add_argument("--update-seconds", type=float, help="of another learner, instead of the one measured")
    parser.add_argument("--gigabits", type=float, nargs="+", default=[10.0, 100.0])
    parser.add_argument("--check", type=int, nargs="*", default=[], help="numbers of actors to run here")
    parser.add_argument("--picture", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    like = {name: getattr(options, name) for name in ("steps_per_message", "broadcast_every", "in_flight")}
    ray.init("local", include_dashboard=False, log_to_driver=False)
    costs, plan = measure(options.config, RayCollector(**like))
    plan = plan._replace(cores=options.cores)
    print(f"{options.config}: {platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}")
    print("\n".join(f"  {name}: {value:.3g}" for name, value in costs._asdict().items()))
    if options.check:
        print("\n| actors | model, env steps/s | measured | ratio | lag, model | lag, measured | bottleneck | load |")
        print("|---|---|---|---|---|---|---|---|")
        for actors in options.check:
            print(check(options.config, costs, plan, RayCollector(**like), actors), flush=True)
    if options.update_seconds is not None:
        costs = costs._replace(update=options.update_seconds)
    for gigabits in options.gigabits:
        print(f"\n{gigabits:g} Gbit/s\n\n{table(costs, plan._replace(gigabits=gigabits))}")
    if options.picture is not None:
        draw(costs, plan, options.picture, f"{options.config}: one learner, up to 10,000 actors")


if __name__ == "__main__":
    main()

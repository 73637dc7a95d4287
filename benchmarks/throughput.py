"""Environment steps a second of whole training runs, beside other libraries and a bare loop written by hand.

Everybody trains DQN on one thread with the same network, batch, replay size, exploration, settings of the optimizer and
number of updates for the same environment steps (counted). Time is taken within a run, from one count of environment
steps to a later one, so neither imports nor compilation are part of it. Every library runs in a process and, if it is
not this one, in a virtual environment of its own, which the first run makes. The processes take turns; a figure is the
median over all repetitions beside their range, a ratio the median of the ratios within a turn.

    python benchmarks/throughput.py
    python benchmarks/throughput.py --workloads lunarlander --subjects ours compiled loop --repetitions 3
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import importlib
import io
import platform
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from importlib import metadata
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from peers import Worker, interpreter, serve


class Workload(NamedTuple):
    """What is trained.

    Attributes:
        env_id: Of Gymnasium.
        hidden_sizes: Of the network.
        num_envs: Stepped together.
        frequency: Environment steps from one lot of updates to the next.
        updates: Updates of a lot.
        capacity: Of the replay.
        target_period: Updates between two copies to the target network.
        rate: Learning rate of Adam.
        steps: Environment steps that are timed.
    """

    env_id: str
    hidden_sizes: tuple[int, ...]
    num_envs: int
    frequency: int
    updates: int
    capacity: int
    target_period: int
    rate: float
    steps: int


def _cartpole(num_envs: int, frequency: int, updates: int, steps: int) -> Workload:
    return Workload("CartPole-v1", (120, 84), num_envs, frequency, updates, 10_000, 50, 2.5e-4, steps)


WORKLOADS = {
    "cartpole, 1 update in 10 steps": _cartpole(1, 80, 8, 20_000),
    "cartpole, 1 update in 10 steps, one at a time": _cartpole(1, 10, 1, 20_000),
    "cartpole, 1 update in 1 step": _cartpole(1, 8, 8, 4_000),
    "cartpole, 1 update in 1 step, one at a time": _cartpole(1, 1, 1, 4_000),
    "cartpole, 16 environments, 1 update in 10 steps": _cartpole(16, 160, 16, 32_000),
    "cartpole, 64 environments, 1 update in 10 steps": _cartpole(64, 320, 32, 64_000),
    "lunarlander": Workload("LunarLander-v3", (256, 256), 1, 4, 4, 50_000, 250, 6.3e-4, 2_000),
}
BATCH, GAMMA, WARM_UP, SETTLE = 128, 0.99, 1_280, 1_280
PEERS = {
    "sb3": ("torch==2.13.0", "stable-baselines3==2.7.0", "gymnasium[box2d]"),
    "sbx": ("torch==2.13.0", "sbx-rl==0.23.0", "gymnasium[box2d]"),
    "tianshou": ("torch==2.13.0", "tianshou==2.0.1", "gymnasium[box2d]"),
    "torchrl": ("torch==2.13.0", "torchrl==0.14.1", "gymnasium[box2d]"),
}
SHORTER = {"tianshou": 4, "torchrl": 4}  # parts of the steps that are timed: they take several times as long for each
NAMES = {
    "ours": "lightning-dqn",
    "compiled": "lightning-dqn, `compile_updates`",
    "loop": "bare loop, fused Adam",
    "sb3": "Stable-Baselines3",
    "sbx": "SBX (JAX)",
    "tianshou": "Tianshou",
    "torchrl": "TorchRL",
}


class Timer:
    """Notes when a count of environment steps is passed, and another."""

    def __init__(self, workload: Workload) -> None:
        self.start, self.stop = WARM_UP + SETTLE, WARM_UP + SETTLE + workload.steps
        self.begun: tuple[float, int, int] | None = None
        self.ended: tuple[float, int, int] | None = None

    def tick(self, env_steps: int, updates: int) -> bool:
        """Whether there is still something to time."""
        if self.begun is None and env_steps >= self.start:
            self.begun = time.perf_counter(), env_steps, updates
        elif self.ended is None and env_steps >= self.stop:
            self.ended = time.perf_counter(), env_steps, updates
        return self.ended is None

    @property
    def result(self) -> dict[str, float]:
        """Seconds, environment steps and updates between the two."""
        assert self.begun is not None
        assert self.ended is not None
        seconds, env_steps, updates = (b - a for a, b in zip(self.begun, self.ended, strict=True))
        return {"seconds": seconds, "env_steps": env_steps, "updates": updates}


def ours(workload: Workload, compile_updates: bool = False, batch_size: int = BATCH) -> dict[str, float]:
    """``Trainer.fit`` with the command line's progress bar, CSV logger and checkpoints."""
    import torch
    from lightning.pytorch import Callback, Trainer
    from lightning.pytorch.callbacks import ModelCheckpoint
    from lightning.pytorch.loggers import CSVLogger

    from lightning_dqn import (
        DQNLightningModule,
        EpsilonGreedy,
        ExperienceCollector,
        ExperienceDataModule,
        LinearSchedule,
        MLPTorso,
        QLearning,
        ReplayBuffer,
    )
    from lightning_dqn.watch import ProgressBar

    timer = Timer(workload)

    class Watch(Callback):
        def on_train_batch_end(self, trainer: Any, pl_module: Any, *args: Any) -> None:
            timer.tick(trainer.datamodule.env_steps, pl_module.gradient_steps)

    steps = timer.stop - WARM_UP + workload.frequency
    data = ExperienceDataModule(
        workload.env_id,
        num_envs=workload.num_envs,
        buffer=ReplayBuffer(capacity=workload.capacity),
        gamma=GAMMA,
        batch_size=batch_size,
        train_frequency=workload.frequency,
        gradient_steps=workload.updates,
        learning_starts=WARM_UP,
        steps_per_epoch=-(-steps // workload.frequency) * workload.frequency,
        seed=0,
    )
    model = DQNLightningModule(
        data.observation_shape,
        data.num_actions,
        torso=partial(MLPTorso, hidden_sizes=workload.hidden_sizes),
        target_rule=QLearning(),
        optimizer=partial(torch.optim.Adam, lr=workload.rate, fused=True),
        target_update_period=workload.target_period,
        target_update_rate=1.0,
        compile_updates=compile_updates,
    )
    explorer = EpsilonGreedy(LinearSchedule(1.0, 0.05, decay_steps=10_000))
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stderr(io.StringIO()):
        callbacks = [ExperienceCollector(explorer), ProgressBar(), ModelCheckpoint(filename="latest"), Watch()]
        Trainer(
            accelerator="cpu", max_epochs=1, logger=CSVLogger(folder), callbacks=callbacks, limit_val_batches=0
        ).fit(model, datamodule=data)
    return timer.result


def loop(workload: Workload) -> dict[str, float]:
    """What one would write by hand with PyTorch and Gymnasium alone: arrays for the replay, one function to learn."""
    import gymnasium as gym
    import numpy as np
    import torch
    from torch import nn
    from torch.nn import functional as F

    timer, rng = Timer(workload), np.random.default_rng(0)
    envs = gym.make_vec(workload.env_id, workload.num_envs, vectorization_mode="sync")
    features, actions = envs.single_observation_space.shape[0], envs.single_action_space.n  # type: ignore[index,attr-defined]
    sizes = (features, *workload.hidden_sizes)
    layers: list[nn.Module] = []
    for before, after in pairwise(sizes):
        layers += [nn.Linear(before, after), nn.ReLU()]
    online = nn.Sequential(*layers, nn.Linear(sizes[-1], actions))
    target = copy.deepcopy(online)
    optimizer = torch.optim.Adam(online.parameters(), lr=workload.rate, fused=True)
    rows, n = workload.capacity // workload.num_envs, workload.num_envs
    seen = np.zeros((rows, n, features), np.float32)
    following = np.zeros_like(seen)
    acted, rewards, ended = np.zeros((rows, n), np.int64), np.zeros((rows, n), np.float32), np.zeros((rows, n), bool)
    observation, _ = envs.reset(seed=0)
    env_steps = updates = due = cursor = count = 0
    fresh = np.zeros(n, bool)
    while timer.tick(env_steps, updates):
        epsilon = max(0.05, 1 - 0.95 * env_steps / 10_000)
        if env_steps < WARM_UP or (n == 1 and rng.random() < epsilon):
            action = rng.integers(actions, size=n)
        else:
            with torch.no_grad():
                action = online(torch.from_numpy(observation)).argmax(1).numpy()
            if n > 1:
                action = np.where(rng.random(n) < epsilon, rng.integers(actions, size=n), action)
        after, reward, terminated, truncated, _ = envs.step(action)
        seen[cursor], following[cursor] = observation, after
        acted[cursor], rewards[cursor], ended[cursor] = action, reward, terminated
        if not fresh.all():  # a step that only resets is no transition; with several, a few are kept for simplicity
            cursor, count = (cursor + 1) % rows, min(count + 1, rows)
            env_steps += n
        fresh, observation = terminated | truncated, after
        if env_steps >= WARM_UP + due:
            due += workload.frequency
            for _ in range(workload.updates):
                row, env = rng.integers(count, size=BATCH), rng.integers(n, size=BATCH)
                state, later = torch.from_numpy(seen[row, env]), torch.from_numpy(following[row, env])
                going = torch.from_numpy(~ended[row, env])
                with torch.no_grad():
                    best = target(later).amax(1)
                    returns = torch.from_numpy(rewards[row, env]) + GAMMA * going * best
                chosen = online(state).gather(1, torch.from_numpy(acted[row, env]).unsqueeze(1)).squeeze(1)
                loss = F.smooth_l1_loss(chosen, returns)
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                updates += 1
                if updates % workload.target_period == 0:
                    target.load_state_dict(online.state_dict())
    envs.close()
    return timer.result


def stable_baselines(workload: Workload, module: str) -> dict[str, float]:
    """Stable-Baselines3, or SBX, which has the same interface."""
    library = importlib.import_module(module)
    from stable_baselines3.common.callbacks import BaseCallback  # type: ignore[import-not-found]
    from stable_baselines3.common.env_util import make_vec_env  # type: ignore[import-not-found]

    timer = Timer(workload)

    class Watch(BaseCallback):  # type: ignore[misc]
        def _on_rollout_start(self) -> None:
            timer.tick(self.num_timesteps, self.model._n_updates)

        def _on_step(self) -> bool:
            return timer.ended is None

    every = max(workload.frequency // workload.num_envs, 1)
    agent = library.DQN(
        "MlpPolicy",
        make_vec_env(workload.env_id, workload.num_envs),
        learning_rate=workload.rate,
        buffer_size=workload.capacity,
        learning_starts=WARM_UP,
        batch_size=BATCH,
        gamma=GAMMA,
        train_freq=every,
        gradient_steps=workload.updates,
        target_update_interval=workload.target_period * workload.frequency // workload.updates,
        exploration_fraction=10_000 / (10 * timer.stop),
        exploration_final_eps=0.05,
        policy_kwargs={"net_arch": list(workload.hidden_sizes)},
        seed=0,
    )
    agent.learn(10 * timer.stop, callback=Watch())
    return timer.result


def tianshou(workload: Workload) -> dict[str, float]:
    """Tianshou's trainer and collector."""
    import gymnasium as gym

    library: dict[str, Any] = {
        name: getattr(importlib.import_module(f"tianshou.{room}"), name)
        for room, names in {
            "algorithm.modelfree.dqn": ("DQN", "DiscreteQLearningPolicy"),
            "algorithm.optim": ("AdamOptimizerFactory",),
            "data": ("Collector", "VectorReplayBuffer"),
            "env": ("DummyVectorEnv",),
            "trainer": ("OffPolicyTrainerParams",),
            "utils.net.common": ("Net",),
        }.items()
        for name in names
    }
    timer, updates = Timer(workload), 0
    algorithm: Any = library["DQN"]

    class Counting(algorithm):  # type: ignore[misc]
        def _update_with_batch(self, *args: Any) -> Any:
            nonlocal updates
            updates += 1
            return super()._update_with_batch(*args)

    envs = library["DummyVectorEnv"]([lambda: gym.make(workload.env_id)] * workload.num_envs)
    space, actions = envs.observation_space[0], envs.action_space[0]
    network = library["Net"](
        state_shape=space.shape, action_shape=actions.n, hidden_sizes=workload.hidden_sizes, concat=False
    )
    policy = library["DiscreteQLearningPolicy"](
        model=network, action_space=actions, observation_space=space, eps_training=1.0
    )
    agent = Counting(
        policy=policy,
        optim=library["AdamOptimizerFactory"](lr=workload.rate),
        gamma=GAMMA,
        target_update_freq=workload.target_period,
        is_double=False,
        huber_loss_delta=1.0,
    )
    buffer = library["VectorReplayBuffer"](workload.capacity, workload.num_envs)
    collector = library["Collector"](agent, envs, buffer, exploration_noise=True)
    collector.reset()
    collector.collect(n_step=WARM_UP, random=True)

    class Done(Exception):
        pass

    def watch(epoch: int, env_steps: int) -> None:
        policy.set_eps_training(max(0.05, 1 - 0.95 * env_steps / 10_000))
        if not timer.tick(WARM_UP + env_steps, updates):
            raise Done

    every = max(workload.frequency, workload.num_envs)
    settings = library["OffPolicyTrainerParams"](
        max_epochs=1,
        epoch_num_steps=10 * timer.stop,
        training_collector=collector,
        collection_step_num_env_steps=every,
        update_step_num_gradient_steps_per_sample=workload.updates / workload.frequency,
        batch_size=BATCH,
        training_fn=watch,
        show_progress=False,
        verbose=False,
    )
    with contextlib.suppress(Done):
        agent.run_training(settings)
    return timer.result


def torchrl(workload: Workload) -> dict[str, float]:
    """TorchRL's collector, replay and loss, in the loop that its examples have."""
    import gymnasium as gym
    import torch

    library: dict[str, Any] = {
        name: getattr(importlib.import_module(f"torchrl.{room}"), name)
        for room, names in {
            "collectors": ("Collector",),
            "data": ("LazyTensorStorage", "TensorDictReplayBuffer"),
            "envs": ("GymEnv", "SerialEnv"),
            "modules": ("MLP", "EGreedyModule", "QValueActor"),
            "objectives": ("DQNLoss", "HardUpdate"),
        }.items()
        for name in names
    }
    from tensordict.nn import TensorDictSequential  # type: ignore[import-not-found]

    timer, updates, env_steps = Timer(workload), 0, 0

    def make() -> Any:
        return library["GymEnv"](workload.env_id, categorical_action_encoding=True)

    envs = make() if workload.num_envs == 1 else library["SerialEnv"](workload.num_envs, make)
    one = gym.make(workload.env_id)
    features, actions = one.observation_space.shape[0], int(one.action_space.n)  # type: ignore[index,attr-defined]
    network = library["MLP"](
        in_features=features,
        out_features=actions,
        num_cells=list(workload.hidden_sizes),
        activation_class=torch.nn.ReLU,
    )
    spec = make().action_spec
    actor = library["QValueActor"](network, in_keys=["observation"], spec=spec)
    explorer = library["EGreedyModule"](spec, eps_init=1.0, eps_end=0.05, annealing_num_steps=10_000)
    collector = library["Collector"](
        envs,
        TensorDictSequential(actor, explorer),
        frames_per_batch=workload.frequency,
        total_frames=-1,
        init_random_frames=WARM_UP,
        device="cpu",
    )
    storage = library["LazyTensorStorage"](workload.capacity)
    buffer = library["TensorDictReplayBuffer"](storage=storage, batch_size=BATCH)
    objective = library["DQNLoss"](actor, loss_function="smooth_l1", delay_value=True, double_dqn=False)
    objective.make_value_estimator(gamma=GAMMA)
    target = library["HardUpdate"](objective, value_network_update_interval=workload.target_period)
    optimizer = torch.optim.Adam(objective.parameters(), lr=workload.rate, fused=True)
    for collected in collector:
        env_steps += collected.numel()
        explorer.step(collected.numel())
        buffer.extend(collected.reshape(-1))
        if env_steps >= WARM_UP:
            for _ in range(workload.updates):
                loss = objective(buffer.sample())["loss"]
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                target.step()
                updates += 1
        if not timer.tick(env_steps, updates):
            break
    collector.shutdown()
    return timer.result


SUBJECTS: dict[str, Callable[[Workload], dict[str, float]]] = {
    "ours": ours,
    "compiled": partial(ours, compile_updates=True),
    "loop": loop,
    "sb3": partial(stable_baselines, module="stable_baselines3"),
    "sbx": partial(stable_baselines, module="sbx"),
    "tianshou": tianshou,
    "torchrl": torchrl,
}


def work(subject: str) -> None:
    """Answers requests of the process that compares."""
    warnings.filterwarnings("ignore")
    if subject != "sbx":
        import torch

        torch.set_num_threads(1)

    def measure(workload: str) -> dict[str, float]:
        chosen = WORKLOADS[workload]
        return SUBJECTS[subject](chosen._replace(steps=chosen.steps // SHORTER.get(subject, 1)))

    serve(measure)


def versions() -> str:
    """The libraries that count, with their versions."""
    found = []
    for name in ("torch", "lightning", "gymnasium", "numpy"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found.append(f"{name} {metadata.version(name)}")
    return ", ".join(found)


def main() -> None:
    """Measures and prints tables in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--subjects", nargs="+", choices=SUBJECTS, default=list(SUBJECTS))
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work)
        return
    workers = {}
    for subject in options.subjects:
        python = interpreter(subject, PEERS[subject]) if subject in PEERS else sys.executable
        workers[subject] = Worker(python, str(Path(__file__).resolve()), "--work", subject)
    peers = ", ".join(PEERS[subject][1] for subject in options.subjects if subject in PEERS)
    print(f"{platform.processor() or platform.machine()}, one thread; {versions()}; {peers}\n")
    print("| workload | subject | us a step | range | steps/s | updates for 100 steps | times as fast as it |")
    print("|---|---|---|---|---|---|---|", flush=True)
    for name in options.workloads:
        turns: list[dict[str, dict[str, float]]] = []
        for _ in range(options.repetitions):
            turns.append({subject: worker.ask(workload=name) for subject, worker in workers.items()})
        best = "compiled" if "compiled" in workers else options.subjects[0]
        for subject in options.subjects:
            cost = [1e6 * turn[subject]["seconds"] / turn[subject]["env_steps"] for turn in turns]
            fastest = [1e6 * turn[best]["seconds"] / turn[best]["env_steps"] for turn in turns]
            ratio = statistics.median(a / b for a, b in zip(cost, fastest, strict=True))
            updates = statistics.median(100 * turn[subject]["updates"] / turn[subject]["env_steps"] for turn in turns)
            middle = statistics.median(cost)
            print(
                f"| {name} | {NAMES[subject]} | {middle:.0f} | {min(cost):.0f} to {max(cost):.0f} | "
                f"{1e6 / middle:,.0f} | {updates:.1f} | {ratio:.2f} |",
                flush=True,
            )
    for worker in workers.values():
        worker.close()


if __name__ == "__main__":
    main()

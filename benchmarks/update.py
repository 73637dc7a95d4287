"""Gradient steps a second, as they are and compiled, against the machine's floor: the same matrix products alone.

The floor of an update is the time of its matrix products and convolutions, recorded while one is made and run again on
tensors of the same shapes with nothing in between. Data is in memory already, and each update is whole: losses,
gradients, optimizer, target network. The three take turns; a figure is the median over all repetitions, a share the
median of the shares within a turn.

    python benchmarks/update.py
    python benchmarks/update.py --networks "MLP 120-84" --algorithms dqn qr_dqn --repetitions 3
"""

from __future__ import annotations

import argparse
import platform
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from itertools import cycle
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from lightning_dqn import (
    CategoricalHead,
    DoubleQLearning,
    DQNLightningModule,
    DuelingStream,
    ExpectedHead,
    ImplicitQuantileHead,
    MinAtarTorso,
    MLPTorso,
    MunchausenQLearning,
    NatureTorso,
    NoisyLinear,
    QLearning,
    QuantileHead,
    ReplayBatch,
    TargetRule,
    Transition,
)
from lightning_dqn.learner.compiled import CompiledUpdate
from lightning_dqn.learner.networks import HeadFactory

aten = torch.ops.aten
PRODUCTS = {aten.mm, aten.addmm, aten.bmm, aten.baddbmm, aten.convolution, aten.convolution_backward}
K = 8


class Network(NamedTuple):
    """What is trained on what.

    Attributes:
        torso: Builds it.
        shape: Of one observation.
        dtype: Of observations.
        batch: Size of a minibatch.
    """

    torso: Any
    shape: tuple[int, ...]
    dtype: torch.dtype
    batch: int


NETWORKS = {
    "MLP 120-84": Network(partial(MLPTorso, hidden_sizes=(120, 84)), (4,), torch.float32, 128),
    "MLP 256-256": Network(partial(MLPTorso, hidden_sizes=(256, 256)), (8,), torch.float32, 128),
    "MinAtar": Network(MinAtarTorso, (4, 10, 10), torch.bool, 32),
    "Nature": Network(NatureTorso, (4, 84, 84), torch.uint8, 32),
}
RAINBOW = partial(CategoricalHead, stream=DuelingStream, layer=NoisyLinear)
ALGORITHMS: dict[str, tuple[HeadFactory, TargetRule]] = {
    "dqn": (ExpectedHead, QLearning()),
    "double_dqn": (ExpectedHead, DoubleQLearning()),
    "qr_dqn": (partial(QuantileHead, num_quantiles=25), QLearning()),
    "iqn": (ImplicitQuantileHead, QLearning()),
    "munchausen_iqn": (ImplicitQuantileHead, MunchausenQLearning()),
    "rainbow": (RAINBOW, DoubleQLearning()),
}


class Products(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records every matrix product and convolution, to run them again."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Callable[[], Any]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Runs an operation; keeps products with arguments of their own."""
        if func.overloadpacket in PRODUCTS:
            copies = [a.detach().clone() if isinstance(a, Tensor) else a for a in args]
            self.calls.append(partial(func, *copies, **(kwargs or {})))
        return func(*args, **(kwargs or {}))


def make(network: Network, algorithm: str) -> tuple[DQNLightningModule, ReplayBatch, torch.optim.Optimizer]:
    """A learner and minibatches of random numbers."""
    torch.manual_seed(0)
    head, rule = ALGORITHMS[algorithm]
    model = DQNLightningModule(network.shape, 4, torso=network.torso, head=head, target_rule=rule)
    observation, following = ((255 * torch.rand(2, K, network.batch, *network.shape)) > 200).to(network.dtype)
    ones = torch.ones(K, network.batch)
    action = torch.randint(4, (K, network.batch))
    batch = ReplayBatch(Transition(observation, action, ones, 0.99 * ones, following), action, ones)
    return model, batch, torch.optim.Adam(model.online.parameters(), lr=1e-4, fused=True)


def eager(model: DQNLightningModule, batch: ReplayBatch, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """An update as it is."""
    minibatches = cycle([(batch.transition.map(itemgetter(k)), batch.weight[k]) for k in range(K)])

    def update() -> None:
        loss = model.losses(*next(minibatches)).loss
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        model.update_target()

    return update


def compiled(model: DQNLightningModule, batch: ReplayBatch, optimizer: torch.optim.Optimizer) -> Callable[[], None]:
    """An update that was compiled."""
    minibatches = cycle([(batch.transition.map(itemgetter(k)), batch.weight[k]) for k in range(K)])
    learn = CompiledUpdate(model.online, model.target, model.losses, optimizer).prepare(batch)
    assert learn is not None

    def update() -> None:
        learn(*next(minibatches))
        model.update_target()

    return update


def floor(update: Callable[[], None]) -> Callable[[], None]:
    """The products of an update alone."""
    with Products() as products:
        update()

    @torch.no_grad()
    def run() -> None:
        for call in products.calls:
            call()

    return run


def timed(call: Callable[[], None], seconds: float) -> float:
    """Seconds of one call, over as many as fit."""
    call()
    count, start = 0, time.perf_counter()
    while (passed := time.perf_counter() - start) < seconds:
        call()
        count += 1
    return passed / count


def main() -> None:
    """Measures and prints a table in Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=list(NETWORKS))
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=["dqn"])
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seconds", type=float, default=1.0, help="of each measurement")
    options = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(options.threads)
    print(f"{platform.processor() or platform.machine()}, {options.threads} threads, torch {torch.__version__}\n")
    print("| network | algorithm | floor, us | as it is, us | share | compiled, us | share | updates/s |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for name in options.networks:
        for algorithm in options.algorithms:
            plain, graph = eager(*make(NETWORKS[name], algorithm)), compiled(*make(NETWORKS[name], algorithm))
            alone = floor(plain)
            turns = [
                (timed(alone, options.seconds), timed(plain, options.seconds), timed(graph, options.seconds))
                for _ in range(options.repetitions)
            ]
            least, as_it_is, quick = (1e6 * statistics.median(column) for column in zip(*turns, strict=True))
            shares = [statistics.median(100 * turn[0] / turn[k] for turn in turns) for k in (1, 2)]
            print(
                f"| {name}, batch {NETWORKS[name].batch} | {algorithm} | {least:,.0f} | {as_it_is:,.0f} | "
                f"{shares[0]:.0f} % | {quick:,.0f} | {shares[1]:.0f} % | {1e6 / quick:,.0f} |",
                flush=True,
            )


if __name__ == "__main__":
    main()

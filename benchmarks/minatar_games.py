"""MinAtar by DQN and by Rainbow: learning curves of several seeds, and their interquartile means.

Every run is the plain command in a process of its own. The score of a seed is the mean of 100 greedy episodes with the
*last* weights. A run that is already in the folder is not repeated and one that was interrupted goes on from its last
checkpoint; runs that are not there yet are left out of the table with ``--have``. A picture is named after its game and
whose runs are on it. The validations of the runs in docs/results.md are kept in benchmarks/curves.

    python benchmarks/minatar_games.py
    python benchmarks/minatar_games.py --games Breakout --algorithms dqn --seeds 1
    python benchmarks/minatar_games.py --have --algorithms rainbow --folder benchmarks/curves/minatar
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
from learning_curve import Points, train

from lightning_dqn.apps.statistics import estimate, interquartile_mean
from lightning_dqn.curves import Curve, draw_curves

# at 5M frames, read off the figures of "MinAtar: An Atari-Inspired Testbed" (Young & Tian 2019), DQN, 30 seeds
YOUNG_AND_TIAN_DQN = {"Asterix": 17, "Breakout": 10, "Freeway": 50, "Seaquest": 20.5, "SpaceInvaders": 44}
ALGORITHMS = {"dqn": ["--config", "dqn"], "rainbow": ["--config", "rainbow_minatar"]}
COLORS = {"dqn": "tab:blue", "rainbow": "tab:orange"}


def draw(results: dict[str, list[tuple[Points, Points]]], game: str, out: Path) -> None:
    """Draws every seed thin and the mean of each algorithm thick."""
    curves = []
    for algorithm, runs in results.items():
        color = COLORS[algorithm]
        curves += [Curve(steps, returns, None, color, thin=True) for steps, returns in runs]
        mean = np.mean([returns for _, returns in runs], axis=0)
        curves.append(Curve(runs[0][0], mean, f"{algorithm}, mean of {len(runs)} seeds", color))
    published = YOUNG_AND_TIAN_DQN[game]
    levels = {f"DQN of Young & Tian at 5,000,000 ({published:g})": float(published)}
    draw_curves(curves, f"MinAtar {game}", out, levels)


def main() -> None:
    """Runs what is missing, prints a table in Markdown and saves a picture of each game."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--games", nargs="+", choices=YOUNG_AND_TIAN_DQN, default=["Breakout", "Asterix"])
    parser.add_argument("--algorithms", nargs="+", choices=ALGORITHMS, default=list(ALGORITHMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--folder", type=Path, default=Path("runs/minatar"))
    parser.add_argument("--images", type=Path, default=Path("docs/images"))
    parser.add_argument("--have", action="store_true", help="run nothing; show what is there")
    parser.add_argument("more", nargs="*", help="further arguments of the command, after --")
    options = parser.parse_args()
    results = {}
    for seed in range(options.seeds):  # a seed of everything before the next of anything
        for game in options.games:
            for algorithm in options.algorithms:
                name = f"{game}-{algorithm}"
                if options.have and not (options.folder / f"{name}-{seed}" / "seconds").exists():
                    continue
                more = [*ALGORITHMS[algorithm], "--data.env_id", f"MinAtar/{game}-v0", *options.more]
                results[game, algorithm, seed] = train("minatar", seed, options.folder, more, name)
    print("| game | algorithm | env steps | IQM | 95 % interval | seeds | env steps/s | Young & Tian, 5M |")
    print("|---|---|---|---|---|---|---|---|")
    for game in options.games:
        curves: dict[str, list[tuple[Points, Points]]] = {}
        for algorithm in options.algorithms:
            runs = [
                results[game, algorithm, seed] for seed in range(options.seeds) if (game, algorithm, seed) in results
            ]
            if not runs:
                continue
            curves[algorithm] = [(steps, returns) for steps, returns, _ in runs]
            scores = np.array([returns[-1] for _, returns, _ in runs])
            estimated = estimate(interquartile_mean, scores[:, None])
            steps, speed = runs[0][0][-1], np.nanmedian([steps[-1] / seconds for steps, _, seconds in runs])
            iqm, interval = f"{estimated.value:.1f}", estimated.interval()
            seeds = ", ".join(f"{score:.1f}" for score in scores)
            print(
                f"| {game} | {algorithm} | {steps:,.0f} | {iqm} | {interval} | {seeds} | {speed:,.0f} | "
                f"{YOUNG_AND_TIAN_DQN[game]:g} |"
            )
        if curves:
            draw(curves, game, options.images / f"minatar_{'_'.join([game.lower(), *curves])}.png")


if __name__ == "__main__":
    main()

"""Runs that are over in a moment, and run folders made by hand, for what reads them."""

import csv

import yaml

# what makes a run of any configuration small; an argument that comes later wins
SMALL = [
    "--trainer.max_epochs=2",
    "--trainer.check_val_every_n_epoch=1",
    "--data.learning_starts=64",
    "--data.steps_per_epoch=64",
    "--data.eval_episodes=2",
    "--data.max_eval_steps=20",
]
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]


def make_run(folder, seed=0, returns=(1.0, 2.0), **settings):
    """A folder as ``fit`` leaves it: configuration, and a validation every 100 steps."""
    values = {
        "seed_everything": seed,
        "trainer.logger": [{"class_path": "CSVLogger", "init_args": {"save_dir": str(folder)}}],
        "trainer.max_epochs": 2,
        "model.optimizer.class_path": "torch.optim.Adam",
        "model.optimizer.init_args.lr": 1e-3,
        "data.env_id": "CartPole-v1",
        "data.n_step": 1,
        "data.seed": None,
        **settings,
    }
    nested = {}
    for name, value in values.items():
        *path, last = name.split(".")
        inner = nested
        for part in path:
            inner = inner.setdefault(part, {})
        inner[last] = value
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(nested))
    with (folder / "metrics.csv").open("w", newline="") as file:
        rows = csv.DictWriter(file, ["env_steps", "step", "collect/return", "val/return"])
        rows.writeheader()
        for k, score in enumerate(returns):
            rows.writerow({"env_steps": 100.0 * k + 50, "step": 2 * k, "collect/return": score - 1})
            rows.writerow({"env_steps": 100.0 * (k + 1), "step": 2 * k + 1, "val/return": score})
    return folder


def snapshot(home, env_steps, rank=0):
    """Return the only replay snapshot of a number of environment steps beside a checkpoint."""
    (folder,) = (home / "replay").glob(f"*-{env_steps}")
    return folder / f"rank{rank}"


def steps_saved(home):
    """Return the environment steps of all that is in ``replay``, in their order."""
    return sorted(int(path.name.rpartition("-")[2]) for path in (home / "replay").iterdir())

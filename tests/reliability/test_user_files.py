"""Two hundred files and folders of a user in and beside ``replay``: saving and resuming leaves every byte of them."""

import json
import shutil
from itertools import product

import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_dqn import ExperienceDataModule
from lightning_dqn.experience.checkpoint import save_snapshot


def put_file(path, rng):
    path.write_bytes(rng.bytes(50))


def put_empty_file(path, rng):
    path.touch()


def put_folder(path, rng):
    path.mkdir()
    put_file(path / "notes.txt", rng)


def put_empty_folder(path, rng):
    path.mkdir()


def put_deep_folder(path, rng):
    (path / "rank0").mkdir(parents=True)
    put_file(path / "rank0" / "reward.npy", rng)


def put_empty_rank(path, rng):
    (path / "rank0").mkdir(parents=True)


def put_garbage_manifest(path, rng):
    put_deep_folder(path, rng)
    (path / "rank0" / "manifest.json").write_text("{" if rng.random() < 0.5 else "[]")


def put_snapshot(path, rng, run=None):
    save_snapshot(path / "rank0", {"reward": rng.random(3)}, {}, run=run)


def put_snapshot_of_another_run(path, rng):
    put_snapshot(path, rng, rng.bytes(4).hex())


def put_snapshot_with_a_manifest_of_other_types(path, rng):
    put_snapshot(path, rng)
    file = path / "rank0" / "manifest.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"run": ["01234567"]}))


def put_link_to_a_folder(path, rng):
    path.symlink_to(path.parents[1] / "outside")


def put_link_to_snapshots(path, rng):
    path.mkdir()
    (path / "rank0").symlink_to(path.parents[2] / "outside" / "rank0")


def put_dangling_link(path, rng):
    path.symlink_to("nowhere")


KINDS = [
    put_file,
    put_empty_file,
    put_folder,
    put_empty_folder,
    put_deep_folder,
    put_empty_rank,
    put_garbage_manifest,
    put_snapshot,
    put_snapshot_of_another_run,
    put_snapshot_with_a_manifest_of_other_types,
    put_link_to_a_folder,
    put_link_to_snapshots,
    put_dangling_link,
]


NAMES = [
    lambda i, run_id, rng: f"notes{i}",
    lambda i, run_id, rng: str(i),
    lambda i, run_id, rng: f"{run_id}-{48 + i}",  # where the next save would be, and the numbers after it
    lambda i, run_id, rng: f"{run_id}-{i}",
    lambda i, run_id, rng: f"{run_id}-mine{i}",
    lambda i, run_id, rng: f"{run_id}{i}",
    lambda i, run_id, rng: f"{rng.bytes(4).hex()}-{48 + i}",
    lambda i, run_id, rng: f"rank{i}",
    lambda i, run_id, rng: f".rank{i}.{rng.bytes(4).hex()}.tmp",
    lambda i, run_id, rng: f".rank{i}.{rng.bytes(8).hex()}.tmp",
    lambda i, run_id, rng: f".{run_id}-{i}.{rng.bytes(8).hex()}.tmp",
    lambda i, run_id, rng: f".latest.ckpt.{rng.bytes(8).hex()}.tmp",
    lambda i, run_id, rng: f"epoch={i}.ckpt",
    lambda i, run_id, rng: f"ä b\n{i}",
]


def put_user_files(home, run_id, count, rng):
    """Create something of every kind under a name of every form in ``replay``, and the rest of a number beside it."""
    forms = list(product(enumerate(KINDS), NAMES))
    beside = [forms[i] for i in rng.permutation(len(forms))[: count - len(forms)]]
    for folder, chosen in ((home / "replay", forms), (home, beside)):
        for (i, put), name in chosen:
            put(folder / name(i, run_id, rng), rng)


def contents(*folders):
    """Return every path in folders, with the bytes of a file and the target of a link."""
    found = {}
    for folder in folders:
        for path in [folder, *folder.rglob("*")]:
            kind = path.readlink() if path.is_symlink() else path.read_bytes() if path.is_file() else "folder"
            found[path] = kind
    return found


def names_of_run(home, run_id, before):
    """Return the snapshots that a run has, without what a user put under such names."""
    return [path for path in (home / "replay").glob(f"{run_id}-*") if path not in before]


def train(make_trainer, make_model, folder, max_epochs, ckpt_path=None, checkpoints=True):
    data = ExperienceDataModule(
        "CartPole-v1", num_envs=1, learning_starts=16, batch_size=4, steps_per_epoch=16, eval_episodes=1, seed=0
    )
    savers = [ModelCheckpoint(folder, "latest", enable_version_counter=False)] if checkpoints else []
    trainer = make_trainer(
        max_epochs=max_epochs,
        callbacks=savers,
        enable_checkpointing=checkpoints,
        limit_val_batches=0,
        default_root_dir=folder,
    )
    trainer.fit(make_model(data), data, ckpt_path=ckpt_path)
    return trainer


def test_save_and_resume_beside_200_user_folders_leaves_every_byte(make_trainer, make_model, tmp_path):
    rng, home, latest = np.random.default_rng(0), tmp_path / "home", tmp_path / "home" / "latest.ckpt"
    put_snapshot(tmp_path / "outside", rng)
    put_folder(tmp_path / "outside" / "more", rng)
    train(make_trainer, make_model, home, 1)
    run_id = torch.load(latest, weights_only=True)["run"]["id"]
    # copies that carry the run's manifest, under names that a save does not give
    copies = ["copy", f"{run_id}-copy", f"{run_id}-32.copy", f"{run_id}-32-copy"]
    for name in copies:
        shutil.copytree(home / "replay" / f"{run_id}-32", home / "replay" / name)
    put_user_files(home, run_id, 200, rng)
    own = [home / "latest.ckpt", home / "latest.ckpt.sha256", *contents(home / "replay" / f"{run_id}-32")]
    before = {path: content for path, content in contents(home, tmp_path / "outside").items() if path not in own}
    assert all(home / "replay" / name in before for name in copies)
    for epochs in (4, 6):
        train(make_trainer, make_model, home, epochs, latest)
    assert len(names_of_run(home, run_id, before)) == 2
    train(make_trainer, make_model, home, 3)
    train(make_trainer, make_model, home, 5, latest)
    other = torch.load(latest, weights_only=True)["run"]["id"]
    assert other != run_id
    assert len(names_of_run(home, other, before)) == 2
    train(make_trainer, make_model, home, 2, checkpoints=False).save_checkpoint(home / "mine.ckpt")
    after = contents(home, tmp_path / "outside")
    lost = [path for path, content in before.items() if after.get(path) != content]
    assert not lost
    files = sum(isinstance(content, bytes) for content in before.values())
    print(f"\n200 files and folders of a user, {files} files in them: 11 saves and 3 resumes later 0 changed")

"""What ``--ckpt_path`` means: a file, or the newest of the runs that are kept together."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning_dqn.charts import run_id_of
from lightning_dqn.checkpoint_io import newest_readable

_LAST, _LAST_IF_ANY = "last", "last_if_any"


def resolve_ckpt_path(config: Any, to_go_on: bool) -> tuple[str | None, str | None]:
    """The checkpoint that a configuration asks for, or the one before where it is damaged.

    Args:
        config: Of one command. ``ckpt_path`` may be ``last`` or ``last_if_any``, or one of Lightning's own names.
        to_go_on: Whether a run is to go on from it.

    Returns:
        Its path, and the W&B run to go on with; ``None`` each if there is none.

    Raises:
        ValueError: If there is none, or none to go on from; names the field.
        CheckpointError: If nothing of it can be read.
    """
    path = config.get("ckpt_path")
    if path in (_LAST, _LAST_IF_ANY):
        path = _last_checkpoint(config, must=path == _LAST)
    return _readable_checkpoint(path, to_go_on)


def _last_checkpoint(config: Any, must: bool) -> str | None:
    """The newest full checkpoint among the runs that this configuration's loggers keep together."""
    given = config.get("trainer", {}).get("logger")
    loggers = [logger for logger in (given if isinstance(given, list) else [given]) if hasattr(logger, "get")]
    folders = {
        Path(settings.get("save_dir") or ".") / settings["name"]
        for settings in (logger.get("init_args") or {} for logger in loggers)
        if settings.get("name")
    }
    own = (config.get("checkpoint_latest") or {}).get("dirpath")
    folders = {Path(own)} if own else folders or {Path(config.get("trainer", {}).get("default_root_dir") or ".")}
    found = [path for folder in folders for path in folder.rglob("latest.ckpt")]
    if found:
        return str(max(found, key=lambda path: path.stat().st_mtime))
    where = ", ".join(sorted(map(str, folders)))
    if must:
        raise ValueError(
            f"ckpt_path: there is no latest.ckpt in {where} to go on from; with `--ckpt_path {_LAST_IF_ANY}` a run "
            "then starts anew"
        )
    return None


def _readable_checkpoint(path: str | None, to_go_on: bool) -> tuple[str | None, str | None]:
    # the parser reads it before the Trainer does
    if not path or path in ("best", "hpc", "registry"):
        return path, None
    try:
        readable, checkpoint = newest_readable(path)
    except FileNotFoundError as missing:
        raise ValueError(str(missing)) from missing
    if to_go_on and "optimizer_states" not in checkpoint:
        raise ValueError(f"ckpt_path: {path} holds weights alone, from which no run can go on; take latest.ckpt")
    return str(readable), run_id_of(checkpoint) if to_go_on else None

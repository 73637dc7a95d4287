"""How much memory a buffer may take, asked before it is allocated."""

from __future__ import annotations

import os
from pathlib import Path

import torch

from lightning_dqn.files import free_space

_CGROUP = Path("/sys/fs/cgroup")
_THIS_MACHINE = ("127.0.0.1", "localhost")


def available_memory() -> int | None:
    """Bytes the kernel can give without swapping, or ``None`` where it does not say."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, AttributeError):
        return None


def cgroup_headroom(root: Path = _CGROUP, membership: Path = Path("/proc/self/cgroup")) -> int | None:
    """Bytes left until the container or job limit that this process runs under; ``None`` without a limit.

    Args:
        root: Where the control groups are mounted (version 2, or version 1 with a ``memory`` folder).
        membership: The file that names the groups of this process.
    """
    try:
        groups = [line.split(":", 2)[2] for line in membership.read_text().splitlines()]
    except (OSError, IndexError):
        groups = []
    headrooms = []
    for group in {*groups, "/"}:
        folder = root / group.lstrip("/")
        # a limit on any ancestor binds as well
        for level in [folder, *folder.parents]:
            if not level.is_relative_to(root):
                break
            headrooms.append(_headroom(level / "memory.max", level / "memory.current"))
            legacy = root / "memory" / level.relative_to(root)
            headrooms.append(_headroom(legacy / "memory.limit_in_bytes", legacy / "memory.usage_in_bytes"))
    return min((room for room in headrooms if room is not None), default=None)


def ranks_here() -> int:
    """Processes that learn together on this machine, as far as what started them says; 1 where nothing does."""
    local = os.environ.get("LOCAL_WORLD_SIZE")
    if local is None and os.environ.get("MASTER_ADDR") in _THIS_MACHINE:
        # Lightning's own launcher tells the number of all, who are here where the first is found here
        local = os.environ.get("WORLD_SIZE")
    return int(local or 1)


def check_fits(num_bytes: int, field: str) -> None:
    """Refuses what would not fit in memory; nothing is allocated.

    Memory is taken only as the buffer fills up, so what other ranks on this machine will take still looks free.

    Args:
        num_bytes: How much each rank is going to allocate.
        field: Named in the error.

    Raises:
        MemoryError: With the three numbers: what is needed, what is free, and what the control group leaves.
    """
    free, headroom, ranks = available_memory(), cgroup_headroom(), ranks_here()
    limits = [limit for limit in (free, headroom) if limit is not None]
    if limits and ranks * num_bytes > min(limits):
        each = f" by {ranks} ranks on this machine, {_gib(num_bytes)} each" if ranks > 1 else ""
        raise MemoryError(
            f"{field}: the replay buffer does not fit; choose a smaller capacity (needed: {_gib(ranks * num_bytes)}"
            f"{each}, available memory: {_gib(free)}, left by the cgroup limit: {_gib(headroom)})"
        )


def check_disk_fits(num_bytes: int, directory: Path, field: str) -> None:
    """Refuses what would not fit on a disk.

    Args:
        num_bytes: How much is going to be written.
        directory: Where; it may not be there yet.
        field: Named in the error.

    Raises:
        MemoryError: With what is needed and what is free.
    """
    free = free_space(directory)
    if num_bytes > free:
        raise MemoryError(
            f"{field}: the replay buffer does not fit into data.storage_dir; choose a smaller capacity or another disk "
            f"(needed: {_gib(num_bytes)}, free in {directory}: {_gib(free)})"
        )


def check_device_fits(num_bytes: int, device: torch.device, field: str) -> None:
    """Refuses what would not fit on an accelerator; only CUDA says what is free.

    Args:
        num_bytes: How much is going to be allocated.
        device: Where.
        field: Named in the error.

    Raises:
        MemoryError: With what is needed and what is free.
    """
    if device.type != "cuda":
        return
    free, _ = torch.cuda.mem_get_info(device)
    if num_bytes > free:
        raise MemoryError(
            f"{field}: the replay buffer does not fit on {device}; choose a smaller capacity or leave "
            f"data.storage_device out (needed: {_gib(num_bytes)}, free: {_gib(free)})"
        )


def _headroom(limit: Path, usage: Path) -> int | None:
    try:
        text = limit.read_text().strip()
        return (
            None if text == "max" else int(text) - int(usage.read_text()) + _reclaimable(limit.parent / "memory.stat")
        )
    except (OSError, ValueError):
        return None


def _reclaimable(stat: Path) -> int:
    # cached files count as used, but the kernel gives them up when memory is asked for
    try:
        lines = (line.split() for line in stat.read_text().splitlines())
        return next((int(value) for name, value in lines if name in ("inactive_file", "total_inactive_file")), 0)
    except (OSError, ValueError):
        return 0


def _gib(num_bytes: int | None) -> str:
    return "no limit" if num_bytes is None else f"{num_bytes / 2**30:.2f} GiB"

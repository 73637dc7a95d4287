"""The configurations that come with the package, and their bare names on a command line."""

from __future__ import annotations

from pathlib import Path


def resolve_config_names(args: list[str]) -> list[str]:
    """Replaces the bare names of shipped configurations by their paths.

    Args:
        args: A command line; the values of ``--config`` and ``-c`` are looked at.

    Raises:
        ValueError: If a value is neither a file nor the name of a shipped configuration.
    """
    resolved: list[str] = []
    for previous, argument in zip(["", *args], args, strict=False):
        if previous in ("--config", "-c"):
            resolved.append(find_config(argument))
        elif argument.startswith("--config="):
            resolved.append("--config=" + find_config(argument.removeprefix("--config=")))
        else:
            resolved.append(argument)
    return resolved


def find_config(name: str, kind: str = "config") -> str:
    """Path of a configuration file.

    Args:
        name: A path, or the name of a shipped file without folder and ending, such as ``cartpole``.
        kind: ``config``, or ``search`` for what ``tune`` searches.

    Raises:
        ValueError: If there is no such file; lists the shipped ones.
    """
    if Path(name).is_file():
        return name
    shipped = shipped_configs(kind)
    if name not in shipped:
        raise ValueError(f"{kind}: {name!r} is neither a file nor one of the shipped {', '.join(sorted(shipped))}")
    return str(shipped[name])


def shipped_configs(kind: str = "config") -> dict[str, Path]:
    """The configurations that come with the package, by bare name.

    Args:
        kind: ``config``, or ``search`` for what ``tune`` searches.
    """
    package = Path(__file__).parent
    # an installed wheel holds them inside the package, a checkout beside it
    home = next((path for path in (package / "configs", package.parent / "configs") if path.is_dir()), package)
    found = sorted(home.rglob("*.yaml"))
    return {path.stem: path for path in found if (path.parent.name == "search") == (kind == "search")}

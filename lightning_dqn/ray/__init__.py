"""Training, collection and search on the machines of a Ray cluster; the extra ``[ray]``."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_dqn.ray.collector import RayCollector as RayCollector
    from lightning_dqn.ray.training import fit_on_ray as fit_on_ray

__all__ = ["RayCollector", "fit_on_ray"]

_WHERE = {"RayCollector": "collector", "fit_on_ray": "training"}


def __getattr__(name: str) -> Any:
    # Ray takes seconds to import, and may not be there
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    from lightning_dqn.apps.command import needed

    needed("ray", "ray")
    return getattr(importlib.import_module(f"{__name__}.{_WHERE[name]}"), name)

"""Hyper-parameters as plain values, so that a checkpoint holds no pickled object and still rebuilds the module."""

from __future__ import annotations

import importlib
import inspect
import types
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, get_args, get_origin, get_type_hints

import numpy as np
from lightning.pytorch.core.mixins import HyperparametersMixin

_INSTANTIATOR = "lightning.pytorch.cli.instantiate_module"


def save_plain_hyperparameters(owner: HyperparametersMixin) -> None:
    """Saves the arguments of the ``__init__`` this is called from, objects written as ``class_path``/``init_args``.

    LightningCLI already hands over plain values, and these are kept as they are. What cannot be written down, such as
    a lambda, is left out with a warning: ``load_from_checkpoint`` then has to be given it again.

    Args:
        owner: The module or data module being made.
    """
    caller = inspect.currentframe()
    assert caller is not None
    owner.save_hyperparameters(frame=caller.f_back)
    if "_instantiator" in owner.hparams:
        return
    plain: dict[str, Any] = {}
    hints = _hints(type(owner))
    for name, value in owner.hparams.items():
        try:
            described = describe(value)
            _check_that_it_can_be_read(hints.get(name), value)
            plain[name] = described
        except TypeError as unknown:
            warnings.warn(
                f"{name} is not saved with the hyper-parameters: {unknown}. Give it to load_from_checkpoint().",
                stacklevel=3,
            )
    owner.hparams.clear()
    owner.save_hyperparameters({"_instantiator": _INSTANTIATOR, **plain})


def describe(value: object) -> Any:
    """Writes a value down in plain types, the way a configuration file would.

    Args:
        value: A plain value, a class, an importable function, a :func:`functools.partial` of one of these, or an object
            that keeps the arguments of its ``__init__`` as attributes of the same names.

    Returns:
        Plain values, dotted paths, and ``{"class_path": ..., "init_args": {...}}``.

    Raises:
        TypeError: If it is none of these.
    """
    if isinstance(value, np.generic):
        value = value.item()
    if value is None or type(value) in (bool, int, float, str):  # subclasses, as of an enum, would be pickled
        return value
    if isinstance(value, Mapping):
        return {str(key): describe(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [describe(item) for item in value]
    if isinstance(value, types.FunctionType | types.BuiltinFunctionType):
        return _dotted_path(value)
    if isinstance(value, type):
        return {"class_path": _dotted_path(value)}
    if isinstance(value, partial):
        factory, positional = value.func, value.args
        if factory.__module__.startswith("jsonargparse.") and positional:  # as load_from_checkpoint hands them over
            factory, positional = positional[-1], ()
        if positional:
            raise TypeError(f"{value} has positional arguments, which cannot be told by name")
        return {"class_path": _dotted_path(factory), "init_args": describe(value.keywords)}
    if not hasattr(value, "__dict__"):
        raise TypeError(f"{value!r} is no plain value")
    try:
        parameters = inspect.signature(type(value)).parameters.values()
    except ValueError as unknown:
        raise TypeError(f"{type(value).__qualname__} does not say what its arguments are") from unknown
    if any(p.kind in (p.VAR_POSITIONAL, p.VAR_KEYWORD) for p in parameters):
        raise TypeError(f"{type(value).__qualname__} takes arguments without names")
    arguments = [p.name for p in parameters]
    missing = [name for name in arguments if not hasattr(value, name)]
    if missing:
        raise TypeError(f"{type(value).__qualname__} does not keep its argument {missing[0]!r} as an attribute")
    return {
        "class_path": _dotted_path(type(value)),
        "init_args": {name: describe(getattr(value, name)) for name in arguments},
    }


def differences(saved: Any, own: Any, name: str) -> list[str]:
    """Return the differences between two sets of plain hyper-parameters, in words.

    Objects are compared by the name of their class and by their arguments; an argument that only one of them has is
    compared with its default.

    Args:
        saved: Of a checkpoint.
        own: Of this run.
        name: The section of the configuration they belong to.

    Returns:
        For each value that differs its dotted name, and what it was and is.
    """
    if isinstance(saved, Mapping | str) and isinstance(own, Mapping) and "class_path" in own:
        saved_name, saved_arguments = _class_and_arguments(saved)
        own_name, own_arguments = _class_and_arguments(own)
        if saved_name is None or saved_name.rpartition(".")[2] != str(own_name).rpartition(".")[2]:
            return [f"{name} was {saved_name or saved} and is now {own_name}"]
        defaults = _defaults(own_name)
        return differences({**defaults, **saved_arguments}, {**defaults, **own_arguments}, name)
    if isinstance(saved, Mapping) and isinstance(own, str) and "class_path" in saved:
        return differences(saved, {"class_path": own}, name)
    if isinstance(saved, Mapping) and isinstance(own, Mapping):
        names = [key for key in {**saved, **own} if not str(key).startswith("_")]
        both = [key for key in names if key in saved and key in own]  # what one of them leaves out is a default
        return [line for key in both for line in differences(saved[key], own[key], f"{name}.{key}")]
    if isinstance(saved, list | tuple) and isinstance(own, list | tuple):
        saved, own = list(saved), list(own)
    plain = (type(None), bool, int, float, str, list)
    same = saved == own if isinstance(saved, plain) and isinstance(own, plain) else str(saved) == str(own)
    return [] if same else [f"{name} was {saved} and is now {own}"]


def _class_and_arguments(value: Any) -> tuple[str | None, dict[str, Any]]:
    if isinstance(value, str):
        return value, {}
    path, arguments = value.get("class_path"), value.get("init_args")
    return None if path is None else str(path), dict(arguments) if isinstance(arguments, Mapping) else {}


def _defaults(class_path: Any) -> dict[str, Any]:
    """Return the arguments of a class that have a plain default."""
    made = _located(class_path)
    try:
        parameters = inspect.signature(made).parameters.values()
    except (TypeError, ValueError):
        return {}
    plain = (type(None), bool, int, float, str, tuple)
    return {p.name: p.default for p in parameters if type(p.default) in plain}


def nulls(make: Callable[..., Any], given: Mapping[str, Any], name: str) -> list[str]:
    """Arguments that are null in a configuration, and must not be: a parser takes that for "not given".

    Args:
        make: The class or function they are for.
        given: Its arguments; objects as ``class_path``/``init_args``.
        name: The section of the configuration they belong to.

    Returns:
        Their dotted names.
    """
    try:
        parameters = inspect.signature(make).parameters
    except (TypeError, ValueError):  # it does not say
        return []
    hints = _hints(make)
    found = []
    for key, value in given.items():
        if value is None and key in hints and key in parameters and parameters[key].default is not None:
            found += [] if hints[key] is Any or type(None) in get_args(hints[key]) else [f"{name}.{key}"]
        if isinstance(value, Mapping) and callable(made := _located(value.get("class_path"))):
            found += nulls(made, value.get("init_args") or {}, f"{name}.{key}")
    return found


def import_path(path: str) -> Any:
    """Return what a dotted path names: the longest part of the path that is a module, then attributes.

    Raises:
        ImportError: If there is no such module.
        AttributeError: If the module has no such name.
    """
    parts = path.split(".")
    for end in range(len(parts) - 1, 0, -1):
        module = ".".join(parts[:end])
        try:
            found: Any = importlib.import_module(module)
        except ModuleNotFoundError as missing:
            if end == 1 or missing.name is None or not f"{module}.".startswith(f"{missing.name}."):
                raise  # the module is there, and needs another one that is not
            continue
        for name in parts[end:]:
            found = getattr(found, name)
        return found
    raise ImportError(f"{path!r} is not a dotted path")


def _located(path: Any) -> Any:
    try:
        return import_path(str(path))
    except Exception:  # an import can raise anything; the parser has said what is wrong
        return None


def _hints(make: Callable[..., Any]) -> dict[str, Any]:
    try:
        return get_type_hints(make.__init__ if isinstance(make, type) else make)  # type: ignore[misc]
    except (NameError, TypeError):  # it does not say, or in types that exist only for who checks them
        return {}


def _check_that_it_can_be_read(hint: Any, value: object) -> None:
    """Refuses functions that a parser would not take for a factory: it goes by what they say that they return.

    Raises:
        TypeError: Saying what to write.
    """
    function = value.func if isinstance(value, partial) else value
    factories = [each for each in (hint, *get_args(hint)) if get_origin(each) is Callable]
    if not isinstance(function, types.FunctionType) or not factories or function.__module__.startswith("jsonargparse."):
        return
    made = get_args(factories[0])[-1]
    kinds = tuple(kind for kind in (made, *get_args(made)) if isinstance(kind, type) and kind is not Any)
    if not kinds:
        return
    returned, path = _hints(function).get("return"), _dotted_path(function)
    if not isinstance(returned, type) or not issubclass(returned, kinds):
        raise TypeError(f"{path} does not say what it returns; write `-> {kinds[0].__name__}` behind its arguments")
    if isinstance(value, partial):
        raise TypeError(f"arguments of {path} cannot be saved, as it is a function; make it a class")


def _dotted_path(named: Any) -> str:
    path = f"{named.__module__}.{named.__qualname__}"
    if "<" in path:
        raise TypeError(f"{path} cannot be imported by name")
    return path

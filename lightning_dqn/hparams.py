"""Hyper-parameters as plain values, so that a checkpoint holds no pickled object and still rebuilds the module."""

from __future__ import annotations

import inspect
import pydoc
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
    """What differs between two sets of plain hyper-parameters, in words.

    Args:
        saved: Of a checkpoint.
        own: Of this run.
        name: The section of the configuration they belong to.

    Returns:
        For each value that differs its dotted name, and what it was and is.
    """
    if isinstance(saved, Mapping) and isinstance(own, Mapping):
        names = [key for key in {**saved, **own} if not str(key).startswith("_")]
        # what one of them leaves out is a default, or a class given by its name alone
        both = [key for key in names if key in saved and key in own]
        return [line for key in both for line in differences(saved[key], own[key], f"{name}.{key}")]
    if isinstance(saved, list | tuple) and isinstance(own, list | tuple):
        saved, own = list(saved), list(own)
    return [] if saved == own else [f"{name} was {saved} and is now {own}"]


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
        if isinstance(value, Mapping) and callable(made := pydoc.locate(str(value.get("class_path")))):
            found += nulls(made, value.get("init_args") or {}, f"{name}.{key}")
    return found


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

"""Build objects from the settings in a checkpoint; a checkpoint may name allowed classes only."""

from __future__ import annotations

import inspect
import re
import types
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Annotated, Any, Literal, NoReturn, Union, get_args, get_origin, get_type_hints

from gymnasium.wrappers import RecordVideo
from lightning.pytorch import LightningDataModule, LightningModule

from lightning_dqn.checkpoint_file import CheckpointError
from lightning_dqn.checkpoint_io import open_checkpoint
from lightning_dqn.hparams import import_path

ALLOWED = ("lightning_dqn", "torch.nn", "torch.optim", "gymnasium.wrappers")
"""Packages whose classes a checkpoint may name without the user's consent."""

TRUST_HELP = "modules whose classes the checkpoint may name too, with commas between them"

# the only functions: elementwise losses, and the default layer of a residual block
_FUNCTIONS = ("lightning_dqn.functional", "lightning_dqn.learner.convolutions.convolution_3x3")
_DOTTED_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+", re.ASCII)
_PLAIN = (type(None), bool, int, float, complex, str, bytes, dict, list, tuple, set, frozenset)


class CheckpointBuilder:
    """A builder that turns the settings in a checkpoint back into objects.

    A dotted path in a checkpoint may only name a class that is a subclass of what its argument takes, as the annotation
    of that argument says, and that is defined in one of the :data:`ALLOWED` packages or in a trusted module. In a
    trusted module it may also be a function that is annotated to return such a class. The path is compared with the
    allowed modules before anything is imported.

    Args:
        source: Name of the checkpoint in error messages.
        trust: Modules that the user allows, with all modules below them.
    """

    def __init__(self, source: str, trust: Iterable[str] = ()) -> None:
        self.source = source
        self.trust = (trust,) if isinstance(trust, str) else tuple(trust)

    def arguments(self, make: Callable[..., Any], settings: Mapping[str, Any], field: str) -> dict[str, Any]:
        """Return the arguments of a class as objects.

        Args:
            make: The class that the arguments are for.
            settings: Its arguments as plain values; objects are written as ``class_path`` and ``init_args``. Names that
                the class does not have are left out.
            field: The section of the configuration that the settings belong to.

        Raises:
            CheckpointError: If a setting names something that is not allowed.
        """
        hints = _hints(make)
        return {
            name: self._value(hints[name], value, f"{field}.{name}")
            for name, value in settings.items()
            if name in hints
        }

    def allows(self, module: str) -> bool:
        """Return True if the user trusts a module.

        Args:
            module: Its dotted path, or that of something in it.
        """
        return _is_below(module, self.trust)

    def refuse(self, name: object, field: str) -> NoReturn:
        """Raise the error for a name outside of the allowed modules.

        Raises:
            CheckpointError: Always; says how to allow the module.
        """
        root = re.split(r"[.:]", str(name))[0]
        raise CheckpointError(
            f"ckpt_path: {self.source} names {_short(name)} for {field}, which is outside {', '.join(ALLOWED)}. If you "
            f'trust this file, allow the module: trust=("{root}",) in Python, --trust {root} on the command line.'
        )

    def _value(self, hint: Any, value: Any, field: str) -> Any:
        members = _members(hint)
        if isinstance(value, Mapping):
            if "class_path" in value:
                return self._object(members, value, field)
            inner = _item_hint(members, 1)
            return {key: self._value(inner, item, f"{field}.{key}") for key, item in value.items()}
        if isinstance(value, list | tuple):
            items = [self._value(_item_hint(members, i), item, f"{field}[{i}]") for i, item in enumerate(value)]
            return tuple(items) if any((get_origin(member) or member) is tuple for member in members) else items
        if isinstance(value, str) and _names_something(members):
            return self._object(members, {"class_path": value}, field)
        return value

    def _object(self, members: Collection[Any], settings: Mapping[Any, Any], field: str) -> Any:
        """Return the object that ``class_path`` and ``init_args`` describe, or its factory where one is taken."""
        given = {"init_args": {}, "dict_kwargs": {}, **settings}
        path, init_args, more = given.pop("class_path"), given.pop("init_args"), given.pop("dict_kwargs")
        if given or not (isinstance(init_args, Mapping) and isinstance(more, Mapping)):
            raise CheckpointError(f"ckpt_path: {self.source} has settings for {field} that describe no object")
        instances, products = _slots(members)
        anything = object in (*instances, *products)
        named = self._resolve(path, field, self.trust if anything else (*ALLOWED, *self.trust))
        arguments = self._init_arguments(named, {**init_args, **more}, field)
        if isinstance(named, type) and issubclass(named, instances):
            return named(**arguments)
        if issubclass(named if isinstance(named, type) else _returned(named), products):
            return partial(named, **arguments) if arguments else named
        taken = " or ".join(sorted({kind.__name__ for kind in (*instances, *products)})) or "plain values"
        raise CheckpointError(f"ckpt_path: {self.source} names {path} for {field}, which takes only: {taken}")

    def _init_arguments(self, named: Callable[..., Any], settings: Mapping[Any, Any], field: str) -> dict[str, Any]:
        hints = _hints(named)
        return {
            str(name): self._value(hints.get(name, Any), value, f"{field}.{name}") for name, value in settings.items()
        }

    def _resolve(self, path: Any, field: str, allowed: Collection[str]) -> Callable[..., Any]:
        if not isinstance(path, str) or not _DOTTED_PATH.fullmatch(path) or not _is_below(path, allowed):
            self.refuse(path, field)
        if not self.allows(path) and "__" in path:  # such as __main__, whose import runs a command
            self.refuse(path, field)
        try:
            found = import_path(path)
        except Exception as error:  # an import can raise anything
            raise CheckpointError(
                f"ckpt_path: {self.source} names {path} for {field}, which cannot be imported: {error}. Start in the "
                "folder that holds the module, or put that folder on PYTHONPATH."
            ) from error
        # the path may lead through an allowed module to something that the module only imported
        home = f"{getattr(found, '__module__', None)}.{getattr(found, '__qualname__', None)}"
        is_function = isinstance(found, types.FunctionType)
        if not (isinstance(found, type) or is_function) or not _is_below(home, allowed):
            self.refuse(path, field)
        if not self.allows(home) and (_writes_files(found) or (is_function and not _is_below(home, _FUNCTIONS))):
            self.refuse(path, field)
        return found  # type: ignore[no-any-return]


def open_settings(
    kind: type[LightningModule] | type[LightningDataModule],
    source: str | Path | IO[bytes],
    map_location: Any,
    hparams_file: str | Path | None,
    trust: Iterable[str],
    given: Collection[str],
) -> tuple[dict[str, Any], dict[str, Any], CheckpointBuilder]:
    """Return the content of a checkpoint, the settings it has for a class, and the builder of its objects.

    Args:
        kind: The class of the module or data module.
        source: See :func:`~lightning_dqn.checkpoint_io.open_checkpoint`.
        map_location: See there.
        hparams_file: Refused.
        trust: See :class:`CheckpointBuilder`.
        given: Names of settings that are not read from the checkpoint.

    Raises:
        CheckpointError: If the checkpoint cannot be read, or is on another machine.
        FileNotFoundError: If there is no file.
        ValueError: If there is a ``hparams_file``.
    """
    if hparams_file is not None:
        raise ValueError(f"hparams_file: the settings are in the checkpoint (got {hparams_file}). Give others by name.")
    name, checkpoint = open_checkpoint(source, map_location)
    saved = checkpoint.get(kind.CHECKPOINT_HYPER_PARAMS_KEY)
    builder = CheckpointBuilder(name, trust)
    if not isinstance(saved, Mapping):
        raise CheckpointError(f"ckpt_path: {name} has no settings for a {kind.__name__}")
    return checkpoint, {name: value for name, value in saved.items() if name not in given}, builder


@contextmanager
def errors_of_checkpoint(path: str | Path) -> Iterator[None]:
    """Turn what loading a checkpoint raises into one line that names the checkpoint.

    Args:
        path: The checkpoint.

    Raises:
        CheckpointError: For every error of the classes that the checkpoint names.
    """
    try:
        yield
    except CheckpointError:
        raise
    except (OSError, KeyError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        reason = " ".join((str(error).splitlines() or [type(error).__name__])[:2]).strip()
        raise CheckpointError(f"ckpt_path: {path} cannot be loaded: {reason or type(error).__name__}") from error


def trusted_modules(text: str) -> tuple[str, ...]:
    """Return the modules that ``--trust`` names.

    Args:
        text: Dotted paths with commas between them.
    """
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _hints(make: Callable[..., Any]) -> dict[str, Any]:
    """Return the annotations of the arguments by name, ``Any`` for those without one.

    A class with ``**kwargs`` takes the arguments of its parents too.
    """
    if not isinstance(make, type):
        return _own_hints(make)[0]
    found: dict[str, Any] = {}
    for kind in make.__mro__:
        if "__init__" in vars(kind):
            hints, is_open = _own_hints(vars(kind)["__init__"])
            found = hints | found
            if not is_open:
                break
    found.pop("self", None)
    return found


def _own_hints(function: Callable[..., Any]) -> tuple[dict[str, Any], bool]:
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a function in C need not have one
        return {}, False
    try:
        hints = get_type_hints(function)
    except (NameError, TypeError):  # annotations that only type checkers can read
        hints = {}
    named = [p for p in parameters if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return {p.name: hints.get(p.name, Any) for p in named}, any(p.kind == p.VAR_KEYWORD for p in parameters)


def _members(hint: Any) -> tuple[Any, ...]:
    """Return the members of a union, or the annotation alone."""
    origin = get_origin(hint)
    if origin is Annotated:
        return _members(get_args(hint)[0])
    if origin in (Union, types.UnionType):
        return tuple(member for each in get_args(hint) for member in _members(each))
    return (hint,)


def _item_hint(members: Collection[Any], index: int) -> Any:
    """Return the annotation of an item of a container: of a sequence, or with ``index`` 1 of a mapping's values."""
    for member in members:
        origin, args = get_origin(member), [arg for arg in get_args(member) if arg is not Ellipsis]
        if isinstance(origin, type) and origin is not type and issubclass(origin, Collection) and args:
            return args[min(index, len(args) - 1)]
    return Any


def _slots(members: Collection[Any]) -> tuple[tuple[type, ...], tuple[type, ...]]:
    """Return the classes of which an argument takes objects, and those of which it takes factories."""
    instances: list[type] = []
    products: list[type] = []
    for member in members:
        origin, args = get_origin(member), get_args(member)
        if origin is Callable or origin is type:
            products += (object if kind is Any else get_origin(kind) or kind for kind in _members(args[-1]))
        elif member is Any:
            instances.append(object)
        elif isinstance(origin or member, type) and not issubclass(origin or member, _PLAIN):
            instances.append(origin or member)
    return tuple(filter(_is_class, instances)), tuple(filter(_is_class, products))


def _is_class(kind: Any) -> bool:
    return isinstance(kind, type) and kind is not type(None)


def _names_something(members: Collection[Any]) -> bool:
    """Return True if text given to an argument is the dotted path of a class, not text."""
    takes_text = any(member in (str, Any) or get_origin(member) is Literal for member in members)
    return not takes_text and any(_slots(members))


def _returned(function: Callable[..., Any]) -> type:
    try:
        returned = get_type_hints(function).get("return")
    except (NameError, TypeError):
        returned = None
    return returned if isinstance(returned, type) else object


def _writes_files(found: Any) -> bool:
    return isinstance(found, type) and (issubclass(found, RecordVideo) or found.__name__ == RecordVideo.__name__)


def _is_below(path: str, modules: Iterable[str]) -> bool:
    return any(path == module or path.startswith(f"{module}.") for module in modules)


def _short(name: object) -> str:
    text = " ".join(str(name).split())
    return text if len(text) <= 80 else f"{text[:77]}..."

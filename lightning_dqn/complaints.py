"""What an error says of a configuration, in one line."""

from __future__ import annotations

import re

_NAMED_FIELD = re.compile(r"(data|model|trainer|collect|schedule|video|ckpt_path|config|environment)\b")
_INSIDE_OF_A_PARSER = re.compile(
    r"(Does not validate against|Subtypes:|Errors:|Given value type:|Problem with given class_path|Expected a path but|"
    r"Given value: (NestedArg|Namespace)\(|Expected a <class 'NoneType'>)"
)


def in_one_line(message: str) -> str:
    """What a parser says of a value it does not take: the field's whole name and the reason, without its own inside.

    Args:
        message: Of jsonargparse, many lines of it.
    """
    names = ".".join(re.findall(r'Parser key "([^"]+)":', message))
    text = re.sub(r"Type \S.* expects a function or a callable class:|Parser key \"[^\"]+\":", "", message)
    text = re.sub(r"\. Got value: Namespace\(.*", "", text)
    said = [line.strip(" -") for line in text.splitlines()]
    said = [line for line in said if line and not _INSIDE_OF_A_PARSER.match(line)]
    return f"{names}: {'; '.join(dict.fromkeys(said))}" if names else " ".join(message.split())


def what_is_wrong(error: BaseException) -> str | None:
    """What an error says of a field of the configuration; ``None`` if it is about something else.

    Args:
        error: Of a command.
    """
    cause: BaseException | None = error
    # the parser wraps what a class of a configuration raised in an error of its own, at length
    while cause is not None and not _NAMED_FIELD.match(str(cause)):
        cause = cause.__cause__
    return None if cause is None else str(cause)


def last_line(error: BaseException) -> str:
    """What an error comes to, where it says more than a line, as with the traceback of another process.

    Args:
        error: Its kind is named if it says nothing.
    """
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__

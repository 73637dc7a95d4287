"""What may fail without an end to the run."""

from __future__ import annotations

from types import TracebackType

from lightning.pytorch.utilities.rank_zero import rank_zero_warn


class Forgiving:
    """A context whose first failure becomes a warning, and every later one nothing.

    Only errors are forgiven: Ctrl-C and the end of the process go through.

    Args:
        what: Beginning of the warning: what is missing then.
        advice: End of the warning: what can be done about it.
    """

    def __init__(self, what: str, advice: str) -> None:
        self.what = what
        self.advice = advice
        self.has_failed = False

    def __enter__(self) -> None:
        """Nothing to begin with."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Whether there was an error that is forgiven."""
        if not isinstance(error, Exception):
            return False
        if not self.has_failed:
            self.has_failed = True
            rank_zero_warn(f"{self.what}, and training goes on: {type(error).__name__}: {error}. {self.advice}")
        return True

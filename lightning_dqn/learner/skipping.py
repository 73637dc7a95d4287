"""Updates that are left out because their loss is not finite."""

from __future__ import annotations

import math


class SkippedUpdates:
    """Counts them, and says when there are too many.

    Attributes:
        total: How many there were.
        in_a_row: How many of them came one after the other, up to now.
    """

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        """Begins to count anew."""
        self.total = self.in_a_row = 0

    def note(self, loss: float, most: int) -> bool:
        """Counts an update if it is to be left out.

        Args:
            loss: What tells.
            most: So many in a row are too many.

        Returns:
            Whether the loss is finite.

        Raises:
            FloatingPointError: If there are too many.
        """
        if math.isfinite(loss):
            self.in_a_row = 0
            return True
        self.total += 1
        self.in_a_row += 1
        if self.in_a_row >= most:
            raise FloatingPointError(
                f"model: the loss was not finite in {self.in_a_row} updates in a row, which were left out "
                "(model.max_skipped_updates). Weights are those from before: lower the learning rate, clip gradients "
                "(trainer.gradient_clip_val) or look at the rewards"
            )
        return False

    def state_dict(self) -> dict[str, int]:
        """Both counts, in plain values."""
        return {"total": self.total, "in_a_row": self.in_a_row}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Takes over what :meth:`state_dict` gave; an empty one, as of an older checkpoint, is a fresh start."""
        self.total, self.in_a_row = (state_dict.get(name, 0) for name in ("total", "in_a_row"))

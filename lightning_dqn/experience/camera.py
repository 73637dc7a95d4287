"""Pictures of an episode, as many as a person looks at, and the GIF they make.

Shapes: ``H`` and ``W``, height and width of a picture in pixels.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Picture = NDArray[np.uint8]

_SMOOTH = 25.0  # pictures per second beyond which nobody sees a difference
_SLOWEST = 0.05  # seconds that a picture stays: an episode of which few are kept is played faster than it was
_SMALLEST, _LARGEST = 240, 400  # pixels of the longer side
_PALETTE_FROM = 16  # pictures
_LAST = 1.0  # seconds that the last picture stays, before the film begins anew


class Camera(gym.Wrapper[Any, Any, Any, Any]):
    """Keeps pictures of an environment's first episode, evenly spaced in time, and never more than ``max_frames``.

    A picture that is not kept is not drawn either.

    Args:
        env: Made with ``render_mode="rgb_array"``.
        max_frames: When so many are kept, every second one is given up.

    Attributes:
        frames: ``[H, W, 3]`` each, uint8.
        ended: Whether the episode came to its end.
    """

    def __init__(self, env: gym.Env[Any, Any], max_frames: int) -> None:
        super().__init__(env)
        self.frames: list[Picture] = []
        self.ended = False
        self.max_frames = max_frames
        self._fps = float(env.metadata.get("render_fps") or _SMOOTH)
        self._every = max(1, round(self._fps / _SMOOTH))
        self._steps = 0
        self._episodes = 0

    @property
    def seconds(self) -> float:
        """How long each picture is to be shown."""
        return min(self._every / self._fps, _SLOWEST)

    def reset(self, **kwargs: Any) -> tuple[Any, dict[str, Any]]:
        """Starts an episode; pictures are taken of the first."""
        observation, info = super().reset(**kwargs)
        self._episodes += 1
        if self._episodes == 1:
            self._take()
        return observation, info

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Takes a step, and a picture of it where one is due."""
        observation, reward, terminated, truncated, info = super().step(action)
        if self._episodes == 1:
            self._steps += 1
            self.ended = terminated or truncated
            if self.ended or self._steps % self._every == 0:
                self._take()
        return observation, reward, terminated, truncated, info

    def _take(self) -> None:
        if len(self.frames) >= self.max_frames:
            self.frames, self._every = self.frames[::2], 2 * self._every
            if self._steps % self._every and not self.ended:
                return
        picture: Any = self.render()
        if not isinstance(picture, np.ndarray) or picture.ndim != 3 or picture.shape[2] != 3:
            raise ValueError(f"render() gave {type(picture).__name__} instead of a picture [H, W, 3]")
        self.frames.append(_in_size(picture))


def encode_gif(frames: Sequence[Picture], seconds: float) -> bytes:
    """A GIF that plays again and again.

    Args:
        frames: ``[H, W, 3]`` each, uint8, at least one.
        seconds: That each is shown; rounded to hundredths, and not below the two that browsers keep to.
    """
    # one palette for all: taken anew for every picture it costs most of the time, and colours flicker
    some = frames[:: -(-len(frames) // _PALETTE_FROM)]
    palette = Image.fromarray(np.concatenate(some)).quantize(256)
    pictures = [Image.fromarray(frame).quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]
    each = max(20, 10 * round(100 * seconds))
    durations = [each] * (len(pictures) - 1) + [int(1000 * _LAST)]
    file = io.BytesIO()
    pictures[0].save(file, "GIF", save_all=True, append_images=pictures[1:], duration=durations, loop=0)
    return file.getvalue()


def _in_size(picture: Picture) -> Picture:
    """Scaled to what is seen well and takes little room: small ones by whole numbers, so that pixels stay sharp."""
    height, width = picture.shape[:2]
    longer = max(height, width)
    if longer < _SMALLEST:
        times = -(-_SMALLEST // longer)
        return picture.repeat(times, axis=0).repeat(times, axis=1)
    if longer <= _LARGEST:
        return picture.copy()  # an environment may draw the next one over it
    size = max(1, width * _LARGEST // longer), max(1, height * _LARGEST // longer)
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.BILINEAR))

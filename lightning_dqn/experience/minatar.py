"""MinAtar: five Atari games in miniature, as planes of 10 x 10 bits.

"MinAtar: An Atari-Inspired Testbed for Thorough and Reproducible Reinforcement Learning Experiments" (Young and Tian
2019).
"""

from __future__ import annotations

import importlib.util
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray

_GAMES = {
    "Asterix": "asterix",
    "Breakout": "breakout",
    "Freeway": "freeway",
    "Seaquest": "seaquest",
    "SpaceInvaders": "space_invaders",
}
# of the planes, in their order; what is on a later one is drawn over what is on an earlier one, as MinAtar does
_COLORS = np.array(
    [
        (235, 235, 235),
        (255, 196, 61),
        (112, 112, 128),
        (214, 84, 74),
        (86, 180, 233),
        (0, 158, 115),
        (204, 121, 167),
        (230, 159, 0),
        (0, 114, 178),
        (240, 228, 66),
    ],
    np.uint8,
)
_BACKGROUND = 24
_CELL = 32  # pixels


def minatar_spec(env_id: str) -> EnvSpec:
    """The registration under which a game is made.

    Episodes are cut off after 10,000 steps, or as many as an argument ``max_episode_steps`` says, -1 for no limit. The
    paper has none; this one is far beyond what its agents reach, and keeps one that never loses from playing for ever.

    Args:
        env_id: ``MinAtar/Breakout-v1``, with the actions that do something in this game, or ``MinAtar/Breakout-v0``
            with all six, as the paper has them.

    Raises:
        ImportError: If MinAtar is not installed; says how to.
        gymnasium.error.NameNotFound: If there is no such game or version.
    """
    if importlib.util.find_spec("minatar") is None:  # not imported yet: it brings matplotlib and seaborn
        raise ImportError(f'{env_id} needs MinAtar: pip install "lightning-dqn[minatar]"')
    name, _, version = env_id.removeprefix("MinAtar/").rpartition("-")
    if name not in _GAMES or version not in ("v0", "v1"):
        raise gym.error.NameNotFound(f"{env_id!r} is not MinAtar/GAME-v0 or -v1 with one of {', '.join(_GAMES)}")
    return EnvSpec(
        env_id,
        entry_point="lightning_dqn.experience.minatar:MinAtarGame",
        max_episode_steps=10_000,
        order_enforce=False,
        disable_env_checker=True,
        kwargs={"game": _GAMES[name], "minimal_actions": version == "v1"},
    )


class MinAtarGame(gym.Env[NDArray[Any], Any]):
    """One game. Observations are planes ``(channels, 10, 10)``, bool, one for each kind of thing on the screen.

    An episode is determined by its seed and actions: nothing is left over from the one before it.

    Args:
        game: MinAtar's name of it, ``space_invaders``.
        minimal_actions: Only the actions that do something in this game.
        sticky_action_prob: How likely a step repeats the action before it.
        difficulty_ramping: Whether games get harder as they go on (Asterix, Seaquest, Space Invaders).
        render_mode: ``rgb_array`` to have it drawn.
    """

    metadata = {"render_modes": ["rgb_array"], "render_fps": 15}

    def __init__(
        self,
        game: str,
        minimal_actions: bool = False,
        sticky_action_prob: float = 0.1,
        difficulty_ramping: bool = True,
        render_mode: str | None = None,
    ) -> None:
        from minatar import Environment  # type: ignore[import-untyped]

        self.render_mode = render_mode
        self.game = Environment(game, sticky_action_prob, difficulty_ramping)
        self.game.env.random = self.game.random  # one generator for stickiness and game, as MinAtar's own seed() has it
        self.actions = self.game.minimal_action_set() if minimal_actions else list(range(self.game.num_actions()))
        self.action_space = spaces.Discrete(len(self.actions))
        height, width, channels = self.game.state_shape()
        self.observation_space = spaces.Box(0, 1, (channels, height, width), np.bool_)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.bool_], dict[str, Any]]:
        """Starts an episode; without a seed the game goes on in its own random numbers."""
        super().reset(seed=seed)
        if seed is not None:
            self.game.random.seed(seed)  # the same numbers as from MinAtar's own seed(), sixty times as quickly
        # otherwise the first step could repeat the last action of the episode before
        self.game.last_action = 0
        self.game.reset()
        return self._planes(), {}

    def step(self, action: int) -> tuple[NDArray[np.bool_], float, bool, bool, dict[str, Any]]:
        """Takes a step."""
        reward, over = self.game.act(self.actions[action])
        return self._planes(), float(reward), over, False, {}

    def render(self) -> NDArray[np.uint8] | None:
        """The screen, each kind of thing in its colour, ``[320, 320, 3]``; ``None`` without a ``render_mode``."""
        if self.render_mode is None:
            return None
        planes = self._planes()
        picture = np.full((*planes.shape[1:], 3), _BACKGROUND, np.uint8)
        for plane, color in zip(planes, _COLORS, strict=False):
            picture[plane] = color
        picture = picture.repeat(_CELL, axis=0).repeat(_CELL, axis=1)
        picture[::_CELL], picture[:, ::_CELL] = _BACKGROUND, _BACKGROUND  # so that cells can be counted
        return picture

    def _planes(self) -> NDArray[np.bool_]:
        planes: NDArray[np.bool_] = self.game.state().transpose(2, 0, 1)
        return planes

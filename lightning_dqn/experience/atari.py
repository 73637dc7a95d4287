"""Atari games as stacks of grey frames: ALE's own vector environment, or one game at a time.

Both show the same: the frames of "Human-level control through deep reinforcement learning" (Mnih et al. 2015, Methods)
under the sticky actions of "Revisiting the Arcade Learning Environment" (Machado et al. 2018).
"""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from gymnasium.vector import AutoresetMode, VectorEnv
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ale_py.vector_env import AtariVectorEnv

_INSTALL = 'pip install "lightning-dqn[atari]"'
_MEND = "unset ALE_ROMS_DIR if it is set, or python -m pip install --force-reinstall ale-py"
_SIZE = 84


def atari_spec(env_id: str) -> EnvSpec:
    """The registration under which an Atari game is made with this preprocessing.

    Args:
        env_id: As ALE registers it, ``ALE/Pong-v5``.

    Raises:
        ImportError: If ale-py is not installed, or the game's ROM is missing or not the right one; says how to mend it.
        gymnasium.error.Error: If there is no such game.
    """
    try:
        from ale_py import roms  # registers its games, too
    except ImportError as missing:
        raise ImportError(f"{env_id} needs ale-py: {_INSTALL}") from missing
    known = gym.spec(env_id)
    try:
        roms.get_rom_path(known.kwargs["game"])
    except OSError as missing:
        said = str(missing).partition("\n")[0]
        raise ImportError(f"{env_id} has no ROM that can be read ({said}): {_MEND}") from missing
    return EnvSpec(
        known.id,
        entry_point="lightning_dqn.experience.atari:make_atari",
        vector_entry_point="lightning_dqn.experience.atari:AtariEnvs",
        # it has been checked, and either check would be made at every step
        order_enforce=False,
        disable_env_checker=True,
        kwargs={"game": known.kwargs["game"]},
    )


def make_atari(
    game: str,
    repeat_action_probability: float = 0.25,
    frameskip: int = 4,
    stack_num: int = 4,
    noop_max: int = 30,
    max_num_frames_per_episode: int = 108_000,
    full_action_space: bool = False,
    mode: int | None = None,
    difficulty: int | None = None,
    render_mode: str | None = None,
) -> gym.Env[Any, Any]:
    """One game through Gymnasium's wrappers.

    An observation is ``stack_num`` grey frames of 84 x 84 pixels, the newest last, uint8; at the start of an episode
    those that were not seen yet are black. Each is the brighter of the last two of ``frameskip`` emulated frames,
    pixel by pixel. Rewards are the game's own, and an episode ends where the game does, not where a life is lost;
    ``info["lives"]`` says how many are left.

    Args:
        game: ALE's name of it, ``pong``.
        repeat_action_probability: How likely each emulated frame repeats the action before it (sticky actions).
        frameskip: Emulated frames of one step.
        stack_num: Frames of one observation.
        noop_max: An episode begins with 1 to as many emulated frames in which nothing is done; 0: with none.
        max_num_frames_per_episode: Emulated frames of play after which an episode is cut off: a truncation.
        full_action_space: All 18 actions instead of those that do something in this game.
        mode: The game's mode, see ALE; its default if not given.
        difficulty: The same for its difficulty.
        render_mode: ``rgb_array`` or ``human``; see Gymnasium.

    Raises:
        gymnasium.error.DependencyNotInstalled: If OpenCV is missing, which scales the frames.
    """
    if importlib.util.find_spec("cv2") is None:
        raise gym.error.DependencyNotInstalled(f"one Atari game at a time needs OpenCV: {_INSTALL}")
    from ale_py import ALEInterface, LoggerMode
    from ale_py.env import AtariEnv

    ALEInterface.setLoggerMode(LoggerMode.Error)  # AtariEnv does so after each emulator has introduced itself
    env: gym.Env[Any, Any] = AtariEnv(
        game,
        mode,
        difficulty,
        obs_type="grayscale",
        frameskip=1,
        repeat_action_probability=repeat_action_probability,
        full_action_space=full_action_space,
        render_mode=render_mode,  # type: ignore[arg-type]
    )
    env = gym.wrappers.AtariPreprocessing(env, noop_max=noop_max, frame_skip=frameskip, screen_size=_SIZE)
    env = gym.wrappers.FrameStackObservation(env, stack_num, padding_type="zero")
    env.metadata = {**env.metadata, "render_fps": 60 / frameskip}  # those of a television, less those skipped
    # not the emulator's own limit, which would also count the frames in which nothing was done
    return gym.wrappers.TimeLimit(env, -(-max_num_frames_per_episode // frameskip))


class AtariEnvs(VectorEnv[NDArray[np.uint8], NDArray[np.int64], NDArray[Any]]):
    """Many games at once, stepped by ALE in threads of its own; see :func:`make_atari` for what they show.

    The same seed and actions give the same episode whatever the number of games and threads, but not the episode that
    :func:`make_atari` gives for them: the random numbers are drawn in another way. A reset with a seed loads the game
    anew and takes some 90 ms, one without takes 5 ms and goes on in the member's own random numbers.

    Args:
        game: ALE's name of it, ``pong``.
        num_envs: Games, ``N``.
        repeat_action_probability: How likely each emulated frame repeats the action before it (sticky actions).
        frameskip: Emulated frames of one step.
        stack_num: Frames of one observation.
        noop_max: An episode begins with 0 to as many emulated frames in which nothing is done.
        max_num_frames_per_episode: Emulated frames of play after which an episode is cut off: a truncation.
        full_action_space: All 18 actions instead of those that do something in this game.
        num_threads: Threads; 0: one for each game, but no more than processors.
    """

    metadata = {"autoreset_mode": AutoresetMode.NEXT_STEP}
    autoreset_mode = AutoresetMode.NEXT_STEP
    resets_alone = True

    def __init__(
        self,
        game: str,
        num_envs: int,
        repeat_action_probability: float = 0.25,
        frameskip: int = 4,
        stack_num: int = 4,
        noop_max: int = 30,
        max_num_frames_per_episode: int = 108_000,
        full_action_space: bool = False,
        num_threads: int = 0,
    ) -> None:
        from ale_py.vector_env import AtariVectorEnv

        self.num_envs = num_envs
        self._envs: AtariVectorEnv = AtariVectorEnv(
            game,
            num_envs,
            num_threads=num_threads,
            max_num_frames_per_episode=max_num_frames_per_episode,
            repeat_action_probability=repeat_action_probability,
            full_action_space=full_action_space,
            img_height=_SIZE,
            img_width=_SIZE,
            stack_num=stack_num,
            frameskip=frameskip,
            noop_max=noop_max + 1,  # ALE draws from [0, noop_max)
            reward_clipping=False,
            use_fire_reset=False,
        )
        self.single_observation_space = self._envs.single_observation_space
        self.single_action_space = self._envs.single_action_space
        self.observation_space = self._envs.observation_space
        self.action_space = self._envs.action_space

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Starts new episodes.

        Args:
            seed: One for each game; ``None`` for those that are to go on in their own random numbers. One number is
                that of the first game, the others take those that follow.
            options: ``reset_mask``, ``[N]``, bool: which games; all if there is none.

        Returns:
            Observations ``[N, stack_num, 84, 84]``, and what ALE tells of each game: ``lives`` and frame numbers.
        """
        mask = (options or {}).get("reset_mask", np.ones(self.num_envs, np.bool_))
        seeds = [seed + i for i in range(self.num_envs)] if isinstance(seed, int) else seed or [None] * self.num_envs
        chosen = [-1 if one is None else one for one in seeds]  # -1 is ALE's word for none
        observation, info = self._envs.reset(seed=np.array(chosen)[mask], options={"reset_mask": mask})
        return observation, info

    def step(
        self, actions: NDArray[np.int64]
    ) -> tuple[NDArray[np.uint8], NDArray[Any], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]:
        """Takes one step in every game.

        Args:
            actions: Action indices, ``[N]``.

        Raises:
            ValueError: If an action does not exist; ALE would wait for ever for the game that was to take it.
        """
        if actions.min() < 0 or actions.max() >= self.single_action_space.n:  # type: ignore[attr-defined]
            raise ValueError(f"{actions} are not all actions of {self.single_action_space}")
        observation, reward, terminated, truncated, info = self._envs.step(actions)
        return observation, reward, terminated, truncated, info

    def close_extras(self, **kwargs: Any) -> None:
        """Ends the threads."""
        del self._envs

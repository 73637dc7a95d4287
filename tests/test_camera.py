import io

import gymnasium as gym
import numpy as np
import pytest
from gymnasium import spaces
from PIL import Image

from lightning_dqn.experience.camera import Camera, encode_gif


class Screen(gym.Env):
    """Shows its clock as a shade of red, on the one array that it draws on."""

    observation_space = spaces.Box(0, 1, (1,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, fps=None, length=200, size=(300, 250)):
        self.metadata = {"render_modes": ["rgb_array"], "render_fps": fps}
        self.length, self.drawn, self.canvas = length, 0, np.zeros((*size, 3), np.uint8)

    def reset(self, *, seed=None, options=None):
        self.clock = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.clock += 1
        return np.zeros(1, np.float32), 0.0, self.clock == self.length, False, {}

    def render(self):
        self.drawn += 1
        self.canvas[...] = self.clock, 0, 0
        return self.canvas


def play(env, max_frames, episodes=1):
    camera = Camera(env, max_frames)
    for _ in range(episodes):
        camera.reset()
        for _ in range(env.length):
            camera.step(0)
    return camera, [int(frame[0, 0, 0]) for frame in camera.frames]


def test_every_step_of_a_short_episode_is_kept():
    camera, clocks = play(Screen(length=5), 10)
    assert clocks == [0, 1, 2, 3, 4, 5]
    assert camera.ended
    assert camera.seconds == pytest.approx(1 / 25)


def test_what_is_too_fast_to_be_seen_is_not_drawn():
    screen = Screen(fps=50, length=20)
    camera, clocks = play(screen, 100)
    assert clocks == list(range(0, 21, 2))
    assert screen.drawn == 11
    assert camera.seconds == pytest.approx(2 / 50)


@pytest.mark.parametrize("length", [64, 97, 200, 201])
def test_a_long_episode_is_shown_whole_by_pictures_evenly_spaced(length):
    camera, clocks = play(Screen(length=length), 20)
    assert 10 <= len(clocks) <= 21
    assert (clocks[0], clocks[-1]) == (0, length)
    spaces_between = set(np.diff(clocks[:-1]).tolist())
    assert len(spaces_between) == 1
    assert camera.seconds == 0.05


def test_pictures_are_of_the_first_episode_alone():
    _, clocks = play(Screen(length=5), 100, episodes=3)
    assert clocks == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("size", "kept"),
    [((300, 250), (300, 250)), ((210, 160), (420, 320)), ((10, 20), (120, 240)), ((400, 600), (266, 400))],
)
def test_pictures_are_neither_tiny_nor_large(size, kept):
    camera, _ = play(Screen(length=1, size=size), 10)
    assert camera.frames[0].shape == (*kept, 3)


def test_an_environment_that_draws_nothing_is_named():
    screen = Screen()
    screen.render = lambda: None
    with pytest.raises(ValueError, match=r"render\(\) gave NoneType instead of a picture"):
        play(screen, 10)


def test_the_gif_opens_with_its_pictures_and_their_time():
    frames = [np.full((30, 40, 3), shade, np.uint8) for shade in (0, 80, 160)]
    gif = Image.open(io.BytesIO(encode_gif(frames, 0.05)))
    assert (gif.format, gif.size, gif.n_frames, gif.info["loop"]) == ("GIF", (40, 30), 3, 0)
    shades, durations = [], []
    for k in range(3):
        gif.seek(k)
        shades.append(gif.convert("RGB").getpixel((5, 5)))
        durations.append(gif.info["duration"])
    assert shades == [(0, 0, 0), (80, 80, 80), (160, 160, 160)]
    assert durations == [50, 50, 1000]

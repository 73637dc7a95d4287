import os
import subprocess
import sys
import warnings

import gymnasium as gym
import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger
from PIL import Image

from lightning_dqn import EpisodeVideo, ExperienceDataModule, ImplicitQuantileHead, NoisyLinear
from lightning_dqn.learner.heads import LinearStream
from lightning_dqn.rng import shared_random_state
from lightning_dqn.video import film_episode
from tests.environments import Chain


def make_data(env_id="CartPole-v1", **kwargs):
    small = {"num_envs": 2, "learning_starts": 64, "train_frequency": 4, "steps_per_epoch": 64, "eval_episodes": 2}
    return ExperienceDataModule(env_id, **(small | {"seed": 0} | kwargs))


def fit(make_trainer, make_model, folder, video, data=None, callbacks=(), **trainer):
    data = data or make_data()
    model = make_model(data)
    settings = {"callbacks": [*callbacks, *([video] if video else [])], "logger": CSVLogger(folder, "run", "")}
    make_trainer(**(settings | {"max_epochs": 2} | trainer)).fit(model, data)
    return model


class Note(Callback):
    """Notes which films are there at the end of each epoch."""

    def __init__(self, path):
        self.path, self.made = path, []

    def on_train_epoch_start(self, trainer, pl_module):
        self.made.append(self.path.stat().st_mtime_ns if self.path.exists() else 0)


def test_a_run_leaves_a_film_of_its_first_validation_episode(make_trainer, make_model, tmp_path):
    video, data = EpisodeVideo(), make_data()
    model = fit(make_trainer, make_model, tmp_path, video, data)
    assert video.path == tmp_path / "run/episode.gif"
    film = Image.open(video.path)
    assert film.size == (400, 266)
    episodes = data.val_dataloader().batches[0]
    played = episodes.play(lambda observation, mask: model.act(observation, mask).cpu().numpy())
    data.close()
    seed, score, length = played.seeds[0], played.returns[0], played.lengths[0]
    assert video.caption == f"return {score:.1f} in {length} steps, seed {seed}"
    assert film.n_frames > 2


@pytest.mark.parametrize("every", [None, 1, 2])
def test_films_are_made_at_the_chosen_epochs_and_at_the_end(every, make_trainer, make_model, tmp_path):
    path = tmp_path / "run/episode.gif"
    note = Note(path)
    fit(make_trainer, make_model, tmp_path, EpisodeVideo(every), callbacks=[note], max_epochs=4)
    before = len({made for made in [*note.made, path.stat().st_mtime_ns] if made})
    assert before == {None: 1, 1: 4, 2: 2}[every]


def noisy(make_model):
    head = lambda features, actions: ImplicitQuantileHead(features, actions, LinearStream, NoisyLinear)  # noqa: E731
    return lambda data: make_model(data, head=head)


@pytest.mark.parametrize("kind", ["plain", pytest.param("noisy", marks=pytest.mark.slow)])
def test_training_is_the_same_with_and_without(kind, make_trainer, make_model, tmp_path):
    make = noisy(make_model) if kind == "noisy" else make_model
    states = []
    for video in (None, EpisodeVideo(every_n_epochs=1)):
        torch.manual_seed(0)
        np.random.seed(0)  # noqa: NPY002
        model = fit(make_trainer, make, tmp_path, video, make_data("CartPole-v1"), max_epochs=3)
        states.append((model.state_dict(), shared_random_state()))
    (without, random_without), (with_film, random_with) = states
    assert all(torch.equal(without[name], with_film[name]) for name in without)
    assert torch.equal(random_without["torch"], random_with["torch"])
    assert torch.equal(random_without["numpy"][1], random_with["numpy"][1])


class Untidy(gym.Env):
    """Draws from the random numbers that everybody shares, and from a pen."""

    metadata = {"render_modes": ["rgb_array"]}
    observation_space = gym.spaces.Box(0, 1, (1,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode

    def reset(self, *, seed=None, options=None):
        self.clock = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.clock += 1
        if self.render_mode is not None:
            torch.rand(1), np.random.rand()  # noqa: NPY002
        return np.zeros(1, np.float32), 1.0, self.clock == 20, False, {}

    def render(self):
        return np.full((50, 50, 3), self.clock, np.uint8)


def test_shared_random_numbers_and_modes_are_put_back(make_trainer, make_model, tmp_path):
    class Look(Callback):
        def on_train_epoch_start(self, trainer, pl_module):
            self.modes = [part.training for part in pl_module.modules()]

        def on_train_epoch_end(self, trainer, pl_module):
            pl_module.online.torso.eval()
            self.before = shared_random_state(), [part.training for part in pl_module.modules()]

    class LookAgain(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            self.after = shared_random_state(), [part.training for part in pl_module.modules()]

    first, then, video = Look(), LookAgain(), EpisodeVideo(1)
    model_data = make_data(Untidy)
    settings = {"callbacks": [first, video, then], "max_epochs": 2}
    make_trainer(logger=CSVLogger(tmp_path, "run", ""), **settings).fit(make_model(model_data), model_data)
    assert video.path.is_file()
    (state, modes), (state_after, modes_after) = first.before, then.after
    assert torch.equal(state["torch"], state_after["torch"])
    assert torch.equal(state["numpy"][1], state_after["numpy"][1])
    assert state["numpy"][2] == state_after["numpy"][2]
    assert modes == modes_after
    assert set(modes) == {True, False}


def test_steps_and_pictures_are_bounded(make_trainer, make_model, tmp_path):
    video = EpisodeVideo(max_steps=7, max_frames=4)
    fit(make_trainer, make_model, tmp_path, video, make_data(Untidy))
    assert video.caption.startswith("return 7.0 in the first 7 steps")
    assert Image.open(video.path).n_frames <= 4


@pytest.mark.parametrize("field", ["every_n_epochs", "max_steps", "max_frames"])
def test_numbers_are_positive(field):
    with pytest.raises(ValueError, match=rf"^video\.{field} must be at least"):
        EpisodeVideo(**{field: 0})


def test_an_environment_that_cannot_be_drawn_is_one_warning(make_trainer, make_model, tmp_path, recwarn):
    video = EpisodeVideo(every_n_epochs=1)
    model = fit(make_trainer, make_model, tmp_path, video, make_data(Chain), max_epochs=3)
    assert video.path is None
    assert model.gradient_steps > 0
    (said,) = [str(warning.message) for warning in recwarn if "no film" in str(warning.message)]
    assert "render_mode" in said
    assert "--video null" in said


def test_without_pygame_the_command_that_installs_it_is_named_and_training_goes_on(
    make_trainer, make_model, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "pygame", None)
    video = EpisodeVideo()
    with pytest.warns(UserWarning, match=r"no film of an episode, and training goes on.*pip install"):
        fit(make_trainer, make_model, tmp_path, video)
    assert video.path is None


def test_ctrl_c_during_a_film_is_ctrl_c(make_trainer, make_model, tmp_path, monkeypatch):
    def interrupted(*_args):
        raise KeyboardInterrupt

    monkeypatch.setattr("lightning_dqn.video.film_episode", interrupted)
    with pytest.raises((KeyboardInterrupt, SystemExit)):
        fit(make_trainer, make_model, tmp_path, EpisodeVideo())


def test_whoever_stopped_the_run_does_not_wait_for_a_film(make_trainer, make_model, tmp_path):
    class Stop(Callback):
        interrupted = False

        def on_train_batch_end(self, trainer, *args):
            self.interrupted = trainer.should_stop = True

    video = EpisodeVideo()
    fit(make_trainer, make_model, tmp_path, video, callbacks=[Stop()])
    assert video.path is None


def test_a_trial_run_leaves_nothing(make_trainer, make_model, tmp_path):
    video = EpisodeVideo(folder=str(tmp_path))
    fit(make_trainer, make_model, tmp_path, video, fast_dev_run=True)
    assert video.path is None


@pytest.mark.parametrize(
    ("env_id", "module", "size", "settings"),
    [
        ("CartPole-v1", "pygame", (400, 266), {}),
        ("Acrobot-v1", "pygame", (400, 400), {}),
        ("LunarLander-v3", "Box2D", (400, 266), {}),
        ("ALE/Pong-v5", "ale_py", (320, 420), {"vectorization": "native"}),
        ("MinAtar/Breakout-v1", "minatar", (320, 320), {}),
        ("Taxi-v4", "pygame", (400, 340), {"action_mask": "action_mask"}),
    ],
)
def test_every_kind_of_environment_is_filmed_without_a_display(env_id, module, size, settings, tmp_path):
    pytest.importorskip(module)
    data = make_data(env_id, **settings)
    film, played, _ = film_episode(data, lambda observation, mask: np.array([2 % data.num_actions]), 60, 100)
    path = tmp_path / "film.gif"
    path.write_bytes(film)
    gif = Image.open(path)
    assert gif.size == size
    assert gif.n_frames > (1 if env_id == "Taxi-v4" else 4)
    assert len(gif.convert("RGB").getcolors(100_000)) >= 3
    assert 0 < played.lengths[0] <= 60


@pytest.mark.slow
def test_the_output_is_not_littered(tmp_path):
    code = (
        "from lightning.pytorch import Trainer\n"
        "from lightning_dqn import *\n"
        "data = ExperienceDataModule('CartPole-v1', learning_starts=64, steps_per_epoch=16, eval_episodes=1)\n"
        "model = DQNLightningModule(data.observation_shape, data.num_actions)\n"
        "Trainer(max_epochs=5, callbacks=[EpisodeVideo()], enable_progress_bar=False, logger=False).fit(model, data)\n"
        "import os; assert 'SDL_VIDEODRIVER' not in os.environ\n"
    )
    variables = {name: value for name, value in os.environ.items() if not name.startswith(("SDL", "PYGAME", "XDG"))}
    ended = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=variables, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    assert (tmp_path / "episode.gif").is_file()
    assert not {"pygame", "XDG"} & set((ended.stdout + ended.stderr).replace("-", " ").split())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Image.open(tmp_path / "episode.gif").verify()

import multiprocessing
import os
import signal
import subprocess
import sys
from contextlib import closing, suppress
from functools import partial
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from torch.utils.data import DataLoader

from lightning_dqn import ExperienceDataModule, ReplayBuffer
from lightning_dqn.experience.atari_scores import ATARI_57
from lightning_dqn.experience.datamodule import RandomStream, data_of
from tests.environments import (
    CHAIN_LENGTH,
    NO_LIMIT,
    Chain,
    ChainVector,
    ContinuousActions,
    Counted,
    Faulty,
    Mortal,
    Noise,
    Observing,
    OffsetActions,
    chain_limit,
)


@pytest.fixture(autouse=True)
def _count_anew():
    Counted.made = Counted.closed = 0


def small(env_id=Chain, **kwargs):
    """A run of a moment: 16 random steps, then 32 more an epoch."""
    defaults = {
        "num_envs": 2,
        "batch_size": 4,
        "train_frequency": 8,
        "gradient_steps": 1,
        "learning_starts": 16,
        "steps_per_epoch": 32,
        "eval_episodes": 3,
        "eval_num_envs": 2,
        "seed": 0,
    }
    return ExperienceDataModule(env_id, **(defaults | kwargs))


def first_action(observation, action_mask):
    return np.zeros(len(observation), np.int64)


# -- arguments ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *[
            (field, value)
            for field in (
                "num_envs",
                "n_step",
                "batch_size",
                "train_frequency",
                "gradient_steps",
                "steps_per_epoch",
                "eval_episodes",
                "eval_num_envs",
                "max_eval_steps",
            )
            for value in (0, -3)
        ],
        ("learning_starts", -1),
        ("gamma", -0.01),
        ("gamma", 1.01),
        ("gamma", float("nan")),
        ("seed", -1),
        ("eval_seed", -1),
        ("vectorization", "threads"),
        ("reward_clip", 0.0),
        ("reward_clip", -1.0),
        ("reward_clip", float("inf")),
        ("reward_clip", float("nan")),
    ],
)
def test_a_bad_argument_is_refused_by_name_before_anything_is_made(monkeypatch, field, value):
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: pytest.fail("allocated"))
    with pytest.raises(ValueError, match=rf"^data\.{field}\b"):
        small(Counted, **{field: value})
    assert Counted.made == 0


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"storage_device": "moon"}, r"^data\.storage_device: 'moon' is no device: "),
        ({"storage_device": "meta", "storage_dir": "replay"}, r"^data\.storage_dir and data\.storage_device name two"),
    ],
)
def test_a_place_that_is_none_is_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        small(**arguments)


def test_a_device_that_is_not_there_is_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=r"^data\.storage_device: there is no CUDA device here$"):
        small(storage_device="cuda")


@pytest.mark.parametrize(
    ("asked", "own", "used"),
    [("cpu", "cuda:1", "cpu"), ("cuda", "cuda:1", "cuda:1"), ("cuda:0", "cuda:1", "cuda:0"), ("cuda", "cpu", "cuda")],
)
def test_each_process_keeps_observations_on_its_own_device(monkeypatch, asked, own, used):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    places = []
    data = small(storage_device=asked)
    data.trainer = SimpleNamespace(global_rank=0, world_size=1, strategy=SimpleNamespace(root_device=torch.device(own)))
    monkeypatch.setattr(data.buffer, "allocate", lambda *args: places.append(args[-1]))
    data.open()
    data.close()
    assert [place.device for place in places] == [torch.device(used)]


def test_a_run_can_keep_its_observations_on_disk(make_trainer, make_model, tmp_path):
    stored = []
    for directory in (None, str(tmp_path / "replay")):
        data = small(storage_dir=directory)
        make_trainer(max_epochs=1, limit_val_batches=0).fit(make_model(data), data)
        stored.append(data.buffer.state_arrays())
    assert isinstance(stored[1]["observation"].base, np.memmap)
    assert all((stored[0][name] == stored[1][name]).all() for name in stored[0])
    assert list((tmp_path / "replay").iterdir()) == []


def test_a_batch_larger_than_the_buffer_is_refused():
    with pytest.raises(ValueError, match=r"data\.batch_size \(65\) is larger than .*data\.buffer\.capacity: 64"):
        small(Counted, batch_size=65, buffer=ReplayBuffer(64))
    small(Counted, batch_size=64, buffer=ReplayBuffer(64))
    assert Counted.made == 0


def test_a_buffer_too_small_for_what_may_arrive_at_once_is_refused():
    with pytest.raises(ValueError, match=r"data\.buffer\.capacity \(11\) must hold n_step \* num_envs = 12"):
        small(Counted, num_envs=4, n_step=3, buffer=ReplayBuffer(11))
    small(Counted, num_envs=4, n_step=3, buffer=ReplayBuffer(12))
    assert Counted.made == 0


@pytest.mark.parametrize("env_id", ["NoSuchEnv-v0", "no.such.path", "tests.environments.NOT_AN_ENVIRONMENT"])
def test_an_unknown_environment_is_refused_at_once(env_id):
    with pytest.raises(ValueError, match=r"^data\.env_id: "):
        small(env_id)


def test_an_environment_of_the_wrong_kind_is_refused_when_looked_at():
    with pytest.raises(ValueError, match=r"^data\.env_id: .*Discrete action space"):
        small(ContinuousActions).num_actions  # noqa: B018
    with pytest.raises(ValueError, match=r"^data\.env_id: observations in Sequence"):
        small(Observing, env_kwargs={"kind": "sequence"}).observation_shape  # noqa: B018


def test_a_native_environment_that_is_none_is_refused_before_memory_is_taken(monkeypatch):
    data = small("Noise-v0", vectorization="native")
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: pytest.fail("allocated"))
    with pytest.raises(ValueError, match=r"^data\.vectorization: Noise-v0"):
        data.open()


@pytest.mark.parametrize("env_id", [Counted, "tests.environments.Counted"])
def test_making_a_data_module_makes_no_environment_and_allocates_nothing(monkeypatch, env_id):
    monkeypatch.setattr(torch, "empty", lambda *args, **kwargs: pytest.fail("allocated"))
    small(env_id)
    assert Counted.made == 0


def test_looking_at_the_spaces_makes_one_environment_and_closes_it():
    data = small(Counted)
    assert (data.observation_shape, data.observation_dtype, data.num_actions) == ((3,), np.dtype("float32"), 2)
    assert (Counted.made, Counted.closed) == (1, 1)


def test_spaces_are_those_that_the_network_sees():
    data = small(Observing, env_kwargs={"kind": "discrete"})
    assert (data.observation_shape, data.observation_dtype) == ((4,), np.dtype("int8"))
    assert small(OffsetActions).num_actions == 3
    assert small("Chain-v0", vectorization="native").observation_shape == (3,)
    wrapped = small(Chain, wrappers=[partial(gym.wrappers.FrameStackObservation, stack_size=2)])
    assert wrapped.observation_shape == (2, 3)


def test_learning_that_starts_after_the_budget_is_refused(make_trainer, make_model):
    data = small(Counted, learning_starts=65)
    model = make_model(data)
    with pytest.raises(
        ValueError, match=r"data\.learning_starts \(65\) is beyond the budget .* = 64 environment steps"
    ):
        make_trainer(max_epochs=2).fit(model, data)
    assert Counted.made == Counted.closed == 1  # to look at its spaces
    make_trainer(max_epochs=3, limit_val_batches=0).fit(model, data)
    assert data.env_steps == 65 + 1 + 3 * 32


def test_at_least_one_batch_is_collected_before_learning():
    assert small(learning_starts=0, batch_size=20).learning_starts == 20
    assert small(learning_starts=30, batch_size=20).learning_starts == 30


@pytest.mark.parametrize(
    ("steps_per_epoch", "train_frequency", "iterations"), [(32, 8, 4), (33, 8, 5), (1, 8, 1), (7, 1, 7)]
)
def test_an_epoch_is_rounded_up_to_whole_iterations(steps_per_epoch, train_frequency, iterations):
    data = small(steps_per_epoch=steps_per_epoch, train_frequency=train_frequency)
    assert len(data.train_dataloader()) == iterations


def test_training_batches_come_from_the_buffer():
    data = small(gradient_steps=3)
    data.open()
    with closing(data):
        dataset = data.train_dataloader()
        assert dataset.buffer is data.buffer
        assert (dataset.gradient_steps, dataset.batch_size) == (3, 4)


# -- seeds -------------------------------------------------------------------------------------------------------------


def as_rank(data, rank, world_size=2):
    data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size)
    return data


def first_training_observations(seed, rank, episodes=3):
    data = as_rank(small("Noise-v0", num_envs=4, env_kwargs={"ends": 1.0}, seed=seed), rank)
    envs = data.open()
    with closing(data):
        observations = [envs.reset()] + [envs.step(np.zeros(4, np.int64)).observation for _ in range(episodes - 1)]
    return np.concatenate(observations)


def evaluation_seeds(loader):
    return [seed for episodes in loader for seed in episodes.seeds]


def test_no_two_first_observations_are_equal_between_seeds_ranks_and_kinds_of_evaluation():
    first = [first_training_observations(seed, rank) for seed in range(20) for rank in range(2)]
    data, env = small("Noise-v0", eval_episodes=50), Noise()
    for loader in (data.val_dataloader(), data.test_dataloader()):
        first.append(np.stack([env.reset(seed=seed)[0] for seed in evaluation_seeds(loader)]))
    assert len(np.unique(np.concatenate(first), axis=0)) == 20 * 2 * 4 * 3 + 2 * 50


def test_the_same_seed_gives_the_same_episodes():
    assert (first_training_observations(5, 0) == first_training_observations(5, 0)).all()


def test_streams_of_random_numbers_are_independent():
    draws = {
        tuple(as_rank(small(seed=seed), rank).rng(stream).integers(2**31, size=4).tolist())
        for seed in range(5)
        for rank in range(3)
        for stream in RandomStream
    }
    assert len(draws) == 5 * 3 * len(RandomStream)


def test_a_stream_starts_the_same_every_time_it_is_asked_for():
    data = small(seed=7)
    assert data.rng(RandomStream.REPLAY).integers(2**31) == data.rng(RandomStream.REPLAY).integers(2**31)


def test_evaluation_plays_the_same_episodes_every_time_and_for_every_seed():
    seeds = evaluation_seeds(small(seed=0).val_dataloader())
    data = small(seed=1)
    assert evaluation_seeds(data.val_dataloader()) == evaluation_seeds(data.val_dataloader()) == seeds
    assert evaluation_seeds(small(num_envs=7, gamma=0.5).val_dataloader()) == seeds
    assert evaluation_seeds(small(eval_num_envs=1).val_dataloader()) == seeds
    assert not set(evaluation_seeds(small(eval_seed=1).val_dataloader())) & set(seeds)
    tested = evaluation_seeds(data.test_dataloader())
    assert not set(tested) & set(seeds)
    assert evaluation_seeds(data.predict_dataloader()) == tested


def test_evaluation_episodes_come_in_batches_of_the_environments():
    loader = small(eval_episodes=7, eval_num_envs=3).val_dataloader()
    assert len(loader) == 3
    assert [len(episodes) for episodes in loader] == [3, 2, 2]


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_ranks_share_the_evaluation_episodes(world_size):
    everything = evaluation_seeds(small(eval_episodes=9, eval_num_envs=2).val_dataloader())
    shares = []
    for rank in range(world_size):
        data = as_rank(small(eval_episodes=9, eval_num_envs=2), rank, world_size)
        shares += evaluation_seeds(data.val_dataloader())
    assert sorted(shares) == sorted(everything)


def test_the_seed_is_that_of_seed_everything_unless_given():
    seed_everything(123)
    assert small(seed=None).seed == 123
    assert small(seed=5).seed == 5
    assert small(seed=0).seed == 0


def test_without_any_seed_each_run_is_another(monkeypatch):
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    assert small(seed=None).seed != small(seed=None).seed


# -- checkpoints -------------------------------------------------------------------------------------------------------


def test_the_clock_is_saved_and_restored():
    data, other = small(), small()
    data.env_steps = 2**40 + 1
    other.load_state_dict(data.state_dict())
    assert other.env_steps == 2**40 + 1


@pytest.mark.parametrize(
    ("saved", "own"), [("CartPole-v1", "Chain-v0"), (Chain, Noise), ("tests.environments.Chain", "Noise-v0")]
)
def test_a_checkpoint_of_another_environment_is_refused(saved, own):
    data = small(own)
    with pytest.raises(ValueError, match=r"ckpt_path: the checkpoint was trained on .*data\.env_id"):
        data.load_state_dict(small(saved).state_dict())
    assert data.env_steps == 0


# -- closing -----------------------------------------------------------------------------------------------------------


def test_environments_are_closed_after_fit_validate_and_test(make_trainer, make_model):
    data = small(Counted)
    model, trainer = make_model(data), make_trainer()
    trainer.fit(model, data)
    assert Counted.made == Counted.closed == 1 + 2 + 2
    trainer.validate(model, data, verbose=False)
    assert Counted.made == Counted.closed == 7
    trainer.test(model, data, verbose=False)
    assert Counted.made == Counted.closed == 9


class BreakDown(Callback):
    def __init__(self, hook):
        self.hook = hook

    def break_down(self, *args):
        raise RuntimeError("broken on purpose")

    def __getattribute__(self, name):
        if name == object.__getattribute__(self, "hook"):
            return object.__getattribute__(self, "break_down")
        return object.__getattribute__(self, name)


@pytest.mark.parametrize("hook", ["on_train_start", "on_train_batch_start", "on_validation_end", "on_train_end"])
def test_environments_are_closed_after_an_exception(make_trainer, make_model, hook):
    data = small(Counted)
    model = make_model(data)
    with pytest.raises(RuntimeError, match="broken on purpose"):
        make_trainer(callbacks=[BreakDown(hook)]).fit(model, data)
    assert Counted.made == Counted.closed > 1


def test_what_an_environment_raises_reaches_the_user(make_trainer, make_model):
    data = small(Faulty, env_kwargs={"fault": "exception"})
    with pytest.raises(RuntimeError, match="the environment broke down"):
        make_trainer().fit(make_model(data), data)


@pytest.mark.parametrize("fault", ["none", "reward", "exception"])
def test_no_process_is_left_behind(make_trainer, make_model, fault):
    data = small(Faulty, env_kwargs={"fault": fault, "at": 5}, vectorization="async")
    model, trainer = make_model(data), make_trainer()
    if fault == "none":
        trainer.fit(model, data)
    else:
        with pytest.raises(ValueError if fault == "reward" else RuntimeError, match=r"nan|broke down"):
            trainer.fit(model, data)
    assert multiprocessing.active_children() == []


_KILLED = """
if __name__ == "__main__":
    import multiprocessing
    from lightning.pytorch import Trainer
    from lightning_dqn import DQNLightningModule, ExperienceDataModule
    from tests.environments import Dying

    multiprocessing.set_forkserver_preload(["lightning_dqn"])
    for remainder in range(2):  # with this seed the first process is the victim, then the second
        data = ExperienceDataModule(
            Dying, num_envs=2, env_kwargs={"remainder": remainder}, vectorization="async", learning_starts=64,
            eval_episodes=2, eval_num_envs=2, seed=3,
        )
        model = DQNLightningModule(data.observation_shape, data.num_actions)
        trainer = Trainer(
            accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
            enable_model_summary=False,
        )
        try:
            trainer.fit(model, data)
        except RuntimeError as error:
            assert "died at step" in str(error), error
            print("raised", data.envs is None)
        print("left", len(multiprocessing.active_children()), flush=True)
"""


@pytest.mark.slow
def test_a_killed_environment_process_ends_the_run_with_an_error_rather_than_hanging(tmp_path):
    (tmp_path / "killed.py").write_text(_KILLED)
    run = subprocess.Popen(
        [sys.executable, "killed.py"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = run.communicate(timeout=90)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(run.pid, signal.SIGKILL)
    assert output.split() == ["raised", "True", "left", "0"] * 2


@pytest.mark.parametrize("eval_num_envs", [1, 3])
def test_evaluation_of_a_native_run_is_native_where_members_reset_one_by_one(eval_num_envs):
    data = small("Chain-v0", vectorization="native", eval_episodes=5, eval_num_envs=eval_num_envs)
    with closing(data):
        batches = list(data.val_dataloader())
        assert isinstance(batches[0].envs(), ChainVector)
        assert batches[0].envs() is batches[-1].envs()
        lengths = [length for batch in batches for length in batch.play(first_action).lengths]
        assert lengths == [chain_limit(seed) or CHAIN_LENGTH for batch in batches for seed in batch.seeds]


@pytest.mark.parametrize("eval_num_envs", [1, 3])
def test_evaluation_of_native_cartpole_is_sync_whatever_the_number_of_environments(eval_num_envs):
    data = small("CartPole-v1", vectorization="native", eval_episodes=5, eval_num_envs=eval_num_envs)
    with closing(data):
        envs = next(iter(data.val_dataloader())).envs()
        assert isinstance(envs, gym.vector.SyncVectorEnv)
        assert envs.num_envs == eval_num_envs


def test_training_environments_clip_and_count_lives_if_asked():
    data = small(Mortal, reward_clip=2.5, life_loss=True, seed_every_episode=False)
    with closing(data):
        envs = data.open()
        assert (envs.reward_clip, envs.life_loss, envs.seed_every_episode) == (2.5, True, False)
    data = small(Mortal)
    with closing(data):
        envs = data.open()
        assert (envs.reward_clip, envs.life_loss, envs.seed_every_episode) == (None, False, True)


def test_evaluation_scores_are_not_clipped_and_do_not_end_with_a_life(make_trainer, make_model):
    data = small(Mortal, env_kwargs=NO_LIMIT, reward_clip=1.0, life_loss=True, seed_every_episode=False)
    (metrics,) = make_trainer().validate(make_model(data), data, verbose=False)
    assert metrics["val/return"] == CHAIN_LENGTH * (CHAIN_LENGTH + 1) / 2
    assert metrics["val/episode_length"] == CHAIN_LENGTH


@pytest.mark.parametrize(("env_id", "known"), [("ALE/Pong-v5", True), ("CartPole-v1", False), (Chain, False)])
def test_the_scores_of_others_are_known_of_atari_games(env_id, known):
    assert small(env_id).reference_scores == (ATARI_57["Pong"] if known else None)


def test_no_more_evaluation_environments_are_made_than_there_are_episodes():
    data = small(Counted, eval_episodes=3, eval_num_envs=100)
    with closing(data):
        episodes = next(iter(data.val_dataloader()))
        assert episodes.play(lambda observation, action_mask: np.zeros(len(observation), np.int64)).lengths.shape == (
            3,
        )
    assert Counted.made == Counted.closed == 3


def test_long_evaluation_episodes_are_cut_off():
    data = small(ChainVector, vectorization="native", env_kwargs={"limits": (None,)}, max_eval_steps=4)
    with closing(data):
        for episodes in data.val_dataloader():
            played = episodes.play(lambda observation, action_mask: np.zeros(len(observation), np.int64))
            assert set(played.lengths.tolist()) == {4}


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_share_the_evaluation_episodes_out_and_none_is_played_twice(world_size, monkeypatch):
    data = ExperienceDataModule("CartPole-v1", eval_episodes=10, eval_num_envs=10)
    whole = [seed for batch in data.val_dataloader() for seed in batch.seeds]
    shares = []
    for rank in range(world_size):
        data.trainer = SimpleNamespace(global_rank=rank, world_size=world_size)
        shares += [seed for batch in data.val_dataloader() for seed in batch.seeds]
    assert sorted(shares) == sorted(whole)
    data.trainer = SimpleNamespace(global_rank=0, world_size=11)
    with pytest.raises(ValueError, match=r"data\.eval_episodes \(10\) must be at least the number of devices, 11"):
        data.val_dataloader()


@pytest.mark.parametrize(
    ("name", "value", "said"),
    [
        ("steps_per_epoch", 2**31, "at most 2,147,483,647"),
        ("train_frequency", 10**30, "at most 2,147,483,647"),
        ("learning_starts", 2**31, "at most 2,147,483,647"),
        ("gradient_steps", 10**6 + 1, "at most 1,000,000"),
        ("eval_episodes", 10**6 + 1, "at most 1,000,000"),
        ("env_timeout", float("inf"), "at most 1,000,000 seconds"),
        ("env_timeout", float("nan"), "above 0"),
    ],
)
def test_what_no_run_could_take_is_refused(name, value, said):
    with pytest.raises(ValueError, match=rf"^data\.{name} must be .*{said}"):
        ExperienceDataModule("CartPole-v1", **{name: value})


# -- environments elsewhere --------------------------------------------------------------------------------------------


def test_the_buffer_can_be_made_without_environments():
    data = ExperienceDataModule(Chain, num_envs=2, buffer=ReplayBuffer(50), batch_size=8, seed=3)
    data.open_buffer()
    assert data.envs is None
    data.buffer.add(data.buffer.storage.map(lambda field: field[:4].numpy()))
    # what is drawn goes on where it was, however often the Trainer asks for the dataloader
    draws = [next(iter(data.train_dataloader())).index.tolist() for _ in range(2)]
    assert draws[0] != draws[1]
    data.close()
    assert next(iter(data.train_dataloader())).index.tolist() == draws[0]


def test_a_copy_without_experience_makes_the_same_environments_and_holds_nothing_else():
    gym.register("OnlyHere-v0", entry_point=Chain)
    data = ExperienceDataModule("OnlyHere-v0", num_envs=2, env_kwargs={"length": 5}, n_step=3, seed=3)
    data.open()
    data.dataset = data.train_dataloader()
    copied = data.without_experience()
    del gym.registry["OnlyHere-v0"]  # as in a process that has not registered it
    try:
        assert (copied.trainer, copied.envs, copied.dataset) == (None, None, None)
        assert copied.buffer is not data.buffer
        assert copied.buffer.capacity == 1
        assert copied.accumulator is not data.accumulator
        assert data.dataset is not None
        copied.episode_rng = np.random.default_rng(0)
        envs = copied.open_envs()
        assert envs.num_envs == 2
        assert envs.envs.envs[0].unwrapped.length == 5
        assert copied.observation_shape == (3,)
        copied.close()
        assert data.envs is not None
    finally:
        data.close()


@pytest.mark.parametrize("own", [True, False])
def test_only_our_data_module_is_filled(own):
    data = ExperienceDataModule(Chain) if own else DataLoader([])
    assert data_of(SimpleNamespace(datamodule=data)) is (data if own else None)

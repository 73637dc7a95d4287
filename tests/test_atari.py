"""Atari through ALE: what is seen, scored and ended, against the bare emulator and each form against the other."""

import sys
from contextlib import closing
from itertools import count, pairwise

import ale_py
import cv2
import gymnasium as gym
import numpy as np
import pytest
from ale_py import roms
from gymnasium.vector import SyncVectorEnv, VectorEnv

from lightning_dqn import ExperienceDataModule
from lightning_dqn.experience.atari import AtariEnvs, atari_spec
from lightning_dqn.experience.envs import make_env, make_envs, resolve_env
from lightning_dqn.experience.n_step import NStepAccumulator
from lightning_dqn.experience.stepping import SeededEnvs

WITHOUT_CHANCE = {"repeat_action_probability": 0.0, "noop_max": 0}
FORMS = ["sync", "native"]


def played(game, vectorization, seeds, actions, **kwargs):
    """Observations of a game in each environment, with what came of the actions, no episode being reset."""
    with closing(make_envs(f"ALE/{game}-v5", len(seeds), kwargs, (), vectorization)) as envs:
        observation, info = envs.reset(seed=seeds[0] if len(seeds) == 1 else list(seeds))
        steps = [(observation.copy(), np.zeros(len(seeds)), False, False, info["lives"].copy())]
        for action in actions:
            observation, reward, terminated, truncated, info = envs.step(np.full(len(seeds), action))
            steps.append((observation.copy(), reward.copy(), terminated.copy(), truncated.copy(), info["lives"].copy()))
    return steps


def emulated(game, actions, frameskip=4):
    """The same from the bare emulator, one frame at a time, without chance, until the game is over.

    Returns:
        For each step the newest frame of 84 x 84, the reward, whether the game is over and the lives left.
    """
    ale = ale_py.ALEInterface()
    ale.setLoggerMode(ale_py.LoggerMode.Error)
    ale.setFloat("repeat_action_probability", 0.0)
    ale.setInt("random_seed", 1)
    ale.loadROM(roms.get_rom_path(game))
    ale.reset_game()
    legal = ale.getMinimalActionSet()

    def small(frame):
        return cv2.resize(frame, (84, 84), interpolation=cv2.INTER_AREA)

    steps = [(small(ale.getScreenGrayscale()), 0, False, ale.lives())]
    for action in actions:
        reward, frames = 0, []
        for _ in range(frameskip):
            reward += ale.act(legal[action])
            frames.append(ale.getScreenGrayscale())
            if ale.game_over():
                return [*steps, (None, reward, True, ale.lives())]
        steps.append((small(np.maximum(frames[-1], frames[-2])), reward, False, ale.lives()))
    return steps


# -- against the bare emulator -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("vectorization", FORMS)
@pytest.mark.parametrize("game", ["Breakout", "SpaceInvaders"])
def test_frames_rewards_lives_and_the_end_are_those_of_the_emulator(game, vectorization):
    actions = np.random.default_rng(1).integers(4, size=700)
    truth = emulated("breakout" if game == "Breakout" else "space_invaders", actions)
    assert truth[-1][2], "the game is not over"
    seen = played(game, vectorization, [5], actions[: len(truth) - 1], **WITHOUT_CHANCE)
    score = 0
    for (observation, reward, terminated, truncated, lives), (frame, points, over, left) in zip(
        seen, truth, strict=True
    ):
        assert observation.shape == (1, 4, 84, 84)
        assert observation.dtype == np.uint8
        assert frame is None or (observation[0, -1] == frame).all()
        assert (float(reward[0]), bool(terminated), bool(truncated), int(lives[0])) == (points, over, False, left)
        score += points
    assert score > 1
    stacks = [observation[0] for observation, *_ in seen]
    assert all((after[:-1] == before[1:]).all() for before, after in pairwise(stacks))


@pytest.mark.parametrize("vectorization", FORMS)
def test_frames_that_were_not_seen_yet_are_black(vectorization):
    steps = played("Breakout", vectorization, [5], [0, 0, 0, 0])
    black = [[not frame.any() for frame in observation[0]] for observation, *_ in steps]
    assert black == [[True] * 3 + [False], [True] * 2 + [False] * 2, [True] + [False] * 3, [False] * 4, [False] * 4]


def test_scores_are_those_of_the_emulator_though_learning_sees_clipped_rewards():
    actions = np.random.default_rng(1).integers(4, size=700)
    truth = emulated("space_invaders", actions)
    envs = SeededEnvs(make_envs("ALE/SpaceInvaders-v5", 1, WITHOUT_CHANCE, (), "native"), count(), reward_clip=1.0)
    with closing(envs):
        envs.reset()
        steps = [envs.step(actions[t : t + 1]) for t in range(len(truth) - 1)]
    assert steps[-1].terminated.all()
    assert steps[-1].episode_return[0] == sum(points for _, points, *_ in truth)
    assert max(points for _, points, *_ in truth) > 1
    assert [step.outcome[0][0] for step in steps] == [min(points, 1) for _, points, *_ in truth[1:]]


# -- seeds -------------------------------------------------------------------------------------------------------------


def test_a_seed_gives_the_same_episode_whatever_the_number_of_games_and_threads_and_what_went_before():
    actions = np.random.default_rng(0).integers(4, size=150)
    alone = played("Breakout", "native", [7], actions, num_threads=1)
    beside = played("Breakout", "native", [5, 7, 2**31 - 1], actions, num_threads=2)
    for one, three in zip(alone, beside, strict=True):
        assert (one[0][0] == three[0][1]).all()
    assert any((three[0][0] != three[0][1]).any() for three in beside)

    envs = SeededEnvs(make_envs("ALE/Breakout-v5", 2, {}, (), "native"), iter([1, 2, 7, 9, 0, 0]), max_episode_steps=60)
    with closing(envs):
        envs.reset()
        for _ in range(60):
            observation = envs.step(np.array([1, 2])).observation
        assert envs.episode_seed.tolist() == [7, 9]
        for one, action in zip(alone[:60], actions, strict=False):
            assert (observation[0] == one[0][0]).all()
            observation = envs.step(np.array([action, 0])).observation


@pytest.mark.parametrize("vectorization", FORMS)
def test_an_episode_can_be_replayed_from_its_seed_and_actions(vectorization):
    actions = np.random.default_rng(0).integers(4, size=60)
    first, second, other = (played("Breakout", vectorization, [seed], actions) for seed in (3, 3, 4))
    assert all((a[0] == b[0]).all() for a, b in zip(first, second, strict=True))
    assert any((a[0] != b[0]).any() for a, b in zip(first, other, strict=True))


def test_one_game_is_reset_with_its_seed_and_its_neighbours_play_on():
    with closing(make_envs("ALE/SpaceInvaders-v5", 3, {}, (), "native")) as envs:
        first, _ = envs.reset(seed=[1, 2, 3])
        first = first.copy()
        for _ in range(10):
            before, *_, info = envs.step(np.array([1, 2, 3]))
        before, frames = before.copy(), info["episode_frame_number"].copy()
        after, info = envs.reset(seed=[None, 2, None], options={"reset_mask": np.array([False, True, False])})
        assert (after[[0, 2]] == before[[0, 2]]).all()
        assert (after[1] == first[1]).all()
        assert info["episode_frame_number"][[0, 2]].tolist() == frames[[0, 2]].tolist()


@pytest.mark.parametrize("vectorization", FORMS)
def test_without_seeds_of_their_own_episodes_go_on_in_other_random_numbers(vectorization):
    starts = []
    for _ in range(2):
        envs = make_envs("ALE/SpaceInvaders-v5", 2, {}, (), vectorization)
        envs = SeededEnvs(envs, iter([1, 2]), max_episode_steps=5, seed_every_episode=False)
        with closing(envs):
            envs.reset()
            starts.append([envs.step(np.array([1, 1])).observation for _ in range(20)][4::5])
        assert envs.episode_seed.tolist() == [-1, -1]
    assert (np.array(starts[0]) == np.array(starts[1])).all()
    assert len({start.tobytes() for start in starts[0]}) > 1


@pytest.mark.parametrize(("vectorization", "possible"), [("sync", {1, 2, 3}), ("native", {0, 1, 2, 3})])
def test_an_episode_begins_with_up_to_as_many_frames_in_which_nothing_is_done(vectorization, possible):
    with closing(make_envs("ALE/Breakout-v5", 1, {"noop_max": 3}, (), vectorization)) as envs:
        envs.reset(seed=0)
        assert {int(envs.reset()[1]["episode_frame_number"][0]) for _ in range(60)} == possible


@pytest.mark.parametrize("vectorization", FORMS)
def test_sticky_actions_are_the_default_and_can_be_set(vectorization):
    def last(action, seed, **kwargs):
        return played("Breakout", vectorization, [seed], [action, 5 - action] * 10, noop_max=0, **kwargs)[-1][0]

    # nothing but the repetition of actions is left to chance
    assert (last(2, 1, repeat_action_probability=0.0) == last(2, 2, repeat_action_probability=0.0)).all()
    assert (last(2, 1, repeat_action_probability=0.0) != last(3, 1, repeat_action_probability=0.0)).any()
    assert (last(2, 1, repeat_action_probability=1.0) == last(3, 1, repeat_action_probability=1.0)).all()
    assert any((last(2, 1) != last(2, seed)).any() for seed in (2, 3))
    assert (last(2, 1) == last(2, 1, repeat_action_probability=0.25)).all()


# -- ends and lives ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("vectorization", FORMS)
@pytest.mark.parametrize(("frames", "steps"), [(40, 10), (41, 11)])
def test_an_episode_is_cut_off_after_so_many_frames_of_play(vectorization, frames, steps):
    seen = played("Pong", vectorization, [1, 2], [0] * steps, max_num_frames_per_episode=frames)
    for t, (_, _, terminated, truncated, _) in enumerate(seen):
        assert not np.any(terminated)
        assert np.all(truncated) == np.any(truncated) == (t == steps)


def test_the_limit_is_108_000_frames():
    env = make_env("ALE/Pong-v5", {})
    limits = [layer._max_episode_steps for layer in layers(env) if isinstance(layer, gym.wrappers.TimeLimit)]
    assert limits == [27_000]


def layers(env):
    while isinstance(env, gym.Wrapper):
        yield env
        env = env.env


@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("vectorization", FORMS)
def test_a_lost_life_is_an_end_for_learning_and_for_nothing_else(vectorization, n_step):
    envs = SeededEnvs(make_envs("ALE/Breakout-v5", 2, {}, (), vectorization), count(), life_loss=True)
    accumulator, rng = NStepAccumulator(2, n_step, gamma=0.9), np.random.default_rng(0)
    stored, lives, ended, cuts, finished = [], [], [], 0, 0
    with closing(envs):
        observation, t = envs.reset(), 0
        while finished < 3:
            action = rng.integers(4, size=2)
            # the number of the step and of the environment take the place of the action
            numbered = 2 * t + np.arange(2)
            step = envs.step(action)
            window = accumulator.add(observation, numbered, *step.outcome[:3], step.next_observation, step.valid)
            stored += zip(window.action.tolist(), window.discount.tolist(), strict=True)
            lives += envs._lives[~step.done].tolist()
            ended += numbered[step.cut].tolist()
            assert step.valid.all()
            assert (step.cut | ~step.done).all()
            # nothing starts anew where only a life was lost
            kept = step.cut & ~step.done
            assert (step.observation[kept] == step.next_observation[kept]).all()
            assert (step.episode_length[kept] > 1).all()
            cuts += int(kept.sum())
            finished += int(step.done.sum())
            observation, t = step.observation, t + 1
    assert set(lives) == {5, 4, 3, 2, 1}
    assert 4 * finished <= cuts <= 4 * (finished + 2)
    started = [number for number, _ in stored]
    assert len(set(started)) == len(started)
    # all but the windows that are open now
    last = {i: max([number for number in ended if number % 2 == i]) for i in range(2)}
    open_now = {number for number in range(2 * t) if number > last[number % 2]}
    assert set(range(2 * t)) - set(started) <= open_now
    for number, discount in stored:
        to_the_end = min((end - number for end in ended if end >= number and (end - number) % 2 == 0), default=np.inf)
        assert discount == (0 if to_the_end < 2 * n_step else pytest.approx(0.9**n_step))


def test_games_without_lives_lose_none():
    envs = SeededEnvs(make_envs("ALE/Pong-v5", 1, {}, (), "native"), count(), life_loss=True)
    with closing(envs):
        envs.reset()
        assert not any(envs.step(np.zeros(1, np.int64)).cut.any() for _ in range(30))


# -- how it is made ----------------------------------------------------------------------------------------------------


def test_training_and_evaluation_see_the_same():
    data = ExperienceDataModule("ALE/Pong-v5", vectorization="native", num_envs=2, eval_episodes=3, eval_num_envs=3)
    with closing(data):
        assert isinstance(data._open_evaluation(), AtariEnvs)
        assert data.observation_shape == (4, 84, 84)
        assert data.observation_dtype == np.uint8
        assert data.num_actions == 6
    one = make_env("ALE/Pong-v5", {})
    assert one.observation_space == make_envs("ALE/Pong-v5", 1, {}, (), "native").single_observation_space


def test_evaluation_does_not_depend_on_the_number_of_games():
    def policy(observation, mask):
        return observation[:, -1].sum(axis=(1, 2), dtype=np.int64) % 4

    results = []
    for num_envs in (1, 3):
        data = ExperienceDataModule(
            "ALE/Breakout-v5", vectorization="native", eval_episodes=3, eval_num_envs=num_envs, max_eval_steps=150
        )
        with closing(data):
            plays = [episodes.play(policy) for episodes in data.val_dataloader()]
        results.append([np.concatenate([getattr(play, name) for play in plays]).tolist() for name in plays[0]._fields])
    assert results[0] == results[1]
    assert len(set(map(tuple, zip(*results[0][1:], strict=True)))) > 1


@pytest.mark.parametrize("vectorization", FORMS)
def test_all_actions_can_be_asked_for(vectorization):
    with closing(make_envs("ALE/Pong-v5", 1, {"full_action_space": True}, (), vectorization)) as envs:
        assert envs.single_action_space.n == 18


def test_pictures_of_one_game_can_be_made():
    with closing(make_env("ALE/Pong-v5", {"render_mode": "rgb_array"})) as env:
        env.reset(seed=0)
        assert env.render().shape == (210, 160, 3)
        assert env.metadata["render_fps"] == 15  # a television has 60, of which three in four are skipped


def test_wrappers_go_around_one_game():
    with closing(make_envs("ALE/Pong-v5", 1, {}, (gym.wrappers.FlattenObservation,), "sync")) as envs:
        assert envs.single_observation_space.shape == (4 * 84 * 84,)


def test_games_can_be_played_in_processes_of_their_own():
    with closing(make_envs("ALE/Pong-v5", 2, {}, (), "async")) as envs:
        assert envs.reset(seed=[1, 2])[0].shape == (2, 4, 84, 84)


def test_the_raw_game_is_still_there():
    assert make_env("ale_py:ALE/Pong-v5", {}).observation_space.shape == (210, 160, 3)


def test_how_games_reset_is_not_written_where_other_environments_read_it():
    before = dict(VectorEnv.metadata)
    try:
        VectorEnv.metadata.clear()
        envs = make_envs("ALE/Pong-v5", 1, {}, (), "native")
        assert "autoreset_mode" in envs.metadata
        assert envs.metadata is not VectorEnv.metadata
    finally:
        VectorEnv.metadata.update(before)


def test_an_action_that_does_not_exist_is_refused_rather_than_waited_for():
    with closing(make_envs("ALE/Pong-v5", 2, {}, (), "native")) as envs:
        envs.reset(seed=[1, 2])
        for action in (-1, 6):
            with pytest.raises(ValueError, match=r"are not all actions of Discrete\(6\)"):
                envs.step(np.array([0, action]))
        envs.step(np.array([0, 5]))


@pytest.mark.parametrize("env_id", ["ALE/Pongg-v5", "ALE/Pong-v9", "ALE/"])
def test_an_unknown_game_is_refused_by_name(env_id):
    with pytest.raises(ValueError, match=r"^data\.env_id: .*") as refused:
        resolve_env(env_id)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(("vectorization", "argument"), [("sync", "reward_clipping"), ("native", "mode")])
def test_an_argument_that_the_game_does_not_take_is_refused_by_name(vectorization, argument):
    with pytest.raises(ValueError, match=rf"^data\.env_kwargs: .*'{argument}'"):
        make_envs("ALE/Pong-v5", 1, {argument: 1}, (), vectorization)


def test_without_ale_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ale_py", None)
    with pytest.raises(
        ValueError, match=r'^data\.env_id: ALE/Pong-v5 needs ale-py: pip install "lightning-dqn\[atari\]"$'
    ):
        ExperienceDataModule("ALE/Pong-v5")


@pytest.mark.parametrize("vectorization", FORMS)
@pytest.mark.parametrize("folder", ["empty", "missing", "of another game"])
def test_without_its_rom_it_says_in_one_line_how_to_get_it(monkeypatch, tmp_path, folder, vectorization):
    roms_dir = tmp_path / folder
    if folder != "missing":
        roms_dir.mkdir()
    if folder == "of another game":
        (roms_dir / "pong.bin").write_bytes(b"no game")
    monkeypatch.setenv("ALE_ROMS_DIR", str(roms_dir))
    said = r"^data\.env_id: ALE/Pong-v5 has no ROM that can be read \(.*\): unset ALE_ROMS_DIR .*-reinstall ale-py$"
    with pytest.raises(ValueError, match=said) as refused:
        make_envs("ALE/Pong-v5", 1, {}, (), vectorization)
    assert "\n" not in str(refused.value)


def test_without_opencv_it_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(ValueError, match=r'^data\.env_id: .*OpenCV: pip install "lightning-dqn\[atari\]"$'):
        make_env("ALE/Pong-v5", {})
    make_envs("ALE/Pong-v5", 1, {}, (), "native").close()


@pytest.mark.parametrize("vectorization", FORMS)
def test_emulators_do_not_introduce_themselves(vectorization, capfd):
    ale_py.ALEInterface.setLoggerMode(ale_py.LoggerMode.Info)
    make_envs("ALE/Pong-v5", 2, {}, (), vectorization).close()
    assert capfd.readouterr() == ("", "")


def test_a_game_is_made_without_checks_at_every_step():
    spec = atari_spec("ALE/Breakout-v5")
    assert (spec.id, spec.kwargs) == ("ALE/Breakout-v5", {"game": "breakout"})
    assert not spec.order_enforce
    assert spec.disable_env_checker
    assert isinstance(make_envs("ALE/Breakout-v5", 1, {}), SyncVectorEnv)

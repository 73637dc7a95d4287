"""Prioritised replay on the whole way from the environment to the optimizer and back, through ``Trainer.fit``.

The chain of :mod:`tests.environments` says of every stored row whether it is right; what the buffer is told is computed
again here, one transition at a time.
"""

import copy
import csv
from functools import partial
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium import spaces
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger

from lightning_dqn import (
    EpsilonGreedy,
    ExperienceCollector,
    ExperienceDataModule,
    LinearSchedule,
    PrioritizedReplayBuffer,
    ReplayBuffer,
    Transition,
)
from lightning_dqn.cli import main
from tests.environments import Chain, chain_steps
from tests.test_data_path import GAMMA, assert_rows_are_right, expected_starts, started
from tests.test_prioritized import Naive, assert_same, state

BETA = LinearSchedule(0.4, 1.0, 100)


class Recorded(PrioritizedReplayBuffer):
    """Notes, in order, what it stored, what it handed out and what it was told.

    ``log`` is where the environments write their steps; each draw is noted with the steps taken by then.
    """

    def __init__(self, capacity=1000, alpha=0.6, beta=BETA, epsilon=1e-6, log=None):
        super().__init__(capacity, alpha, beta, epsilon)
        self.log = log
        self.events = []

    def add(self, transition):
        self.events.append(("add", transition.map(np.array)))
        super().add(transition)

    def sample(self, num_updates, batch_size, rng, env_steps=0):
        batch = super().sample(num_updates, batch_size, rng, env_steps)
        steps = None if self.log is None else chain_steps(self.log)
        self.events.append(("sample", copy.deepcopy(batch), env_steps, self.tree.priorities.copy(), steps))
        return batch

    def update_priorities(self, index, td_error):
        self.events.append(("update", index.clone(), td_error.clone()))
        super().update_priorities(index, td_error)

    def of(self, kind):
        return [event[1:] for event in self.events if event[0] == kind]


def logged(folder):
    """``(env_steps, beta)`` of every row of a run's metrics that has a beta."""
    lines = csv.DictReader((Path(folder) / "metrics.csv").read_text().splitlines())
    return [(float(row["env_steps"]), float(row["collect/beta"])) for row in lines if row["collect/beta"]]


def one_after_the_other(transitions):
    return Transition(
        *(None if field[0] is None else np.concatenate(field) for field in zip(*transitions, strict=True))
    )


def make_data(env_id=Chain, **kwargs):
    defaults = {
        "num_envs": 4,
        "buffer": Recorded(),
        "gamma": GAMMA,
        "batch_size": 5,
        "train_frequency": 8,
        "gradient_steps": 2,
        "learning_starts": 20,
        "steps_per_epoch": 200,
        "eval_episodes": 2,
        "eval_num_envs": 2,
        "seed": 0,
    }
    return ExperienceDataModule(env_id, **(defaults | kwargs))


def on_the_chain(tmp_path, num_envs, n_step, capacity, **kwargs):
    log = tmp_path / "log"
    log.mkdir()
    buffer = Recorded(capacity, log=str(log), **kwargs)
    return make_data(num_envs=num_envs, n_step=n_step, buffer=buffer, env_kwargs={"log": str(log)})


ON_THE_CHAIN = [
    pytest.mark.parametrize("capacity", [13, 1000]),  # in the one the ring goes round many times, in the other never
    pytest.mark.parametrize("n_step", [1, 3]),
    pytest.mark.parametrize("num_envs", [1, 4]),
]


def everywhere(test):
    for mark in ON_THE_CHAIN:
        test = mark(test)
    return test


# -- which transitions are drawn ---------------------------------------------------------------------------------------


@everywhere
def test_every_row_drawn_is_exact_and_the_one_of_its_name(
    make_trainer, make_model, tmp_path, num_envs, n_step, capacity
):
    data = on_the_chain(tmp_path, num_envs, n_step, capacity)
    make_trainer(limit_val_batches=0).fit(make_model(data), data)
    buffer = data.buffer
    added = one_after_the_other([transition for (transition,) in buffer.of("add")])
    assert_rows_are_right(added, n_step)
    starts = started(added)
    assert max(starts.values()) == 1
    assert starts == expected_starts(chain_steps(tmp_path / "log"), n_step)
    assert len(added.action) > 200 - 4 * n_step

    kept, count, draws = {}, 0, 0
    for kind, *event in buffer.events:
        if kind == "add":
            (transition,) = event
            for place in range(len(transition.action)):
                kept[count] = transition.map(lambda field, place=place: field[place])
                kept.pop(count - capacity, None)
                count += 1
        if kind == "sample":
            draws += 1
            batch = event[0]
            rows = batch.transition.map(lambda field: field.numpy())
            assert rows.reward.shape == (2, 5)
            assert_rows_are_right(rows, n_step)
            for place, name in np.ndenumerate(batch.index.numpy()):
                for drawn, stored in zip(rows, kept[name], strict=True):
                    assert (drawn is None) == (stored is None)
                    assert drawn is None or (drawn[place] == stored.astype(drawn.dtype)).all()
    assert draws == 25


@everywhere
def test_a_step_can_be_drawn_as_soon_as_its_window_is_closed_and_no_earlier(
    make_trainer, make_model, tmp_path, num_envs, n_step, capacity
):
    data = on_the_chain(tmp_path, num_envs, n_step, capacity)
    make_trainer(limit_val_batches=0).fit(make_model(data), data)
    added, seen_open = [], False
    for kind, *event in data.buffer.events:
        if kind == "add":
            added.append(event[0])
        if kind == "sample":
            _, env_steps, priorities, steps = event
            assert len(steps) == env_steps
            closed = expected_starts(steps, n_step)
            assert started(one_after_the_other(added)) == closed
            seen_open |= sum(closed.values()) < env_steps
            # in the tree stand these and nothing else
            there = min(sum(closed.values()), capacity)
            assert (priorities[:there] > 0).all()
            assert not priorities[there:].any()
    assert seen_open == (n_step > 1)


# -- what the buffer is told -------------------------------------------------------------------------------------------


def naive_td_error(model, row):
    """Double Q-learning's TD error of one transition, with the networks as they are."""
    with torch.no_grad():
        now = model.online(row.observation[None]).q_values[0]
        online, target = (net(row.next_observation[None]).q_values[0] for net in (model.online, model.target))
    value = target[int(online.argmax())]
    return float(abs(row.reward + row.discount * value - now[int(row.action)]))


@everywhere
def test_the_priorities_of_a_run_are_those_of_a_dictionary(
    make_trainer, make_model, tmp_path, num_envs, n_step, capacity
):
    data = on_the_chain(tmp_path, num_envs, n_step, capacity, epsilon=0.01)
    # a network that never changes, so that a transition has one TD error whenever it is drawn
    model = make_model(data, optimizer=partial(torch.optim.SGD, lr=0.0), target_update_rate=1.0)
    make_trainer(limit_val_batches=0).fit(model, data)
    naive, rows = Naive(capacity, 0.01), []
    for kind, *event in data.buffer.events:
        if kind == "add":
            (transition,) = event
            fields = transition.map(torch.from_numpy)
            rows += [fields.map(lambda field, place=place: field[place]) for place in range(len(transition.action))]
            naive.add(len(transition.action))
        if kind == "sample":
            np.testing.assert_allclose(event[2], naive.leaves(0.6), rtol=1e-3)
        if kind == "update":
            index, told = event
            names = index.flatten().tolist()
            errors = [naive_td_error(model, rows[name]) for name in names]
            assert told.flatten().tolist() == pytest.approx(errors, rel=1e-3, abs=1e-3)
            naive.learn(names, errors)
    np.testing.assert_allclose(data.buffer.tree.priorities, naive.leaves(0.6), rtol=1e-3)
    assert data.buffer.max_priority == pytest.approx(naive.largest, rel=1e-3)
    assert len(set(naive.leaves(0.6))) > (3 if capacity == 13 else 50)


class Beginnings(Callback):
    """Keeps the module as it was before each batch."""

    def __init__(self):
        self.models = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        trainer_of, pl_module._trainer = pl_module._trainer, None
        self.models.append((copy.deepcopy(pl_module.online), copy.deepcopy(pl_module.target)))
        pl_module._trainer = trainer_of


class Pair:
    """An online and a target network that learn from one transition after the other."""

    def __init__(self, online, target):
        self.online, self.target = online, target

    def learn(self, rows, weights, lr, rate):
        """One SGD step on the weighted mean of the Huber losses, and the target's step after it."""
        gradients = [torch.zeros_like(parameter) for parameter in self.online.parameters()]
        errors = []
        for row, weight in zip(rows, weights, strict=True):
            errors.append(naive_td_error(self, row))
            with torch.no_grad():
                best = int(self.online(row.next_observation[None]).q_values[0].argmax())
                target = row.reward + row.discount * self.target(row.next_observation[None]).q_values[0, best]
            error = target - self.online(row.observation[None]).q_values[0, int(row.action)]
            loss = 0.5 * error**2 if abs(error) <= 1 else abs(error) - 0.5
            for gradient, own in zip(gradients, torch.autograd.grad(loss, list(self.online.parameters())), strict=True):
                gradient += float(weight) * own / len(rows)
        with torch.no_grad():
            for parameter, gradient in zip(self.online.parameters(), gradients, strict=True):
                parameter -= lr * gradient
            for stale, fresh in zip(self.target.parameters(), self.online.parameters(), strict=True):
                stale += rate * (fresh - stale)
        return errors


@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("gradient_steps", [1, 3])
def test_weights_count_in_the_gradient_and_not_in_the_priorities(make_trainer, make_model, gradient_steps, n_step):
    buffer = Recorded(60, alpha=1.0, beta=LinearSchedule(1.0, 1.0, 1), epsilon=0.01)
    data = make_data(
        "Noise-v0", buffer=buffer, gradient_steps=gradient_steps, n_step=n_step, batch_size=8, steps_per_epoch=80
    )
    model, beginnings = (
        make_model(data, optimizer=partial(torch.optim.SGD, lr=0.1), target_update_rate=0.5),
        Beginnings(),
    )
    make_trainer(limit_val_batches=0, callbacks=[beginnings]).fit(model, data)
    after = [*(online for online, _ in beginnings.models[1:]), model.online]
    drawn, told = buffer.of("sample"), buffer.of("update")
    assert len(drawn) == len(told) == len(after) == 10
    told_apart = 0
    for (batch, *_), (index, errors), before, expected in zip(drawn, told, beginnings.models, after, strict=True):
        assert torch.equal(index, batch.index)
        pair, unweighted = Pair(*before), Pair(*copy.deepcopy(before))
        for k in range(gradient_steps):
            rows = [batch.transition.map(lambda field, k=k, b=b: field[k, b]) for b in range(8)]
            naive = pair.learn(rows, batch.weight[k].tolist(), lr=0.1, rate=0.5)
            unweighted.learn(rows, [1.0] * 8, lr=0.1, rate=0.5)
            assert errors[k].tolist() == pytest.approx(naive, rel=1e-4, abs=1e-5)
        for name, parameter in expected.named_parameters():
            torch.testing.assert_close(parameter, dict(pair.online.named_parameters())[name], rtol=1e-4, atol=1e-6)
        different = zip(expected.parameters(), unweighted.online.parameters(), strict=True)
        told_apart += any(not torch.allclose(one, other, rtol=1e-3, atol=1e-5) for one, other in different)
    assert told_apart == 9  # in the first batch all weights are still 1


# -- beta --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_envs", [1, 4, 8])
@pytest.mark.parametrize("gradient_steps", [1, 3])
def test_beta_is_that_of_the_environment_steps_however_they_are_taken(
    make_trainer, make_model, tmp_path, num_envs, gradient_steps
):
    data = make_data(
        "Noise-v0", num_envs=num_envs, gradient_steps=gradient_steps, learning_starts=16, steps_per_epoch=60
    )
    logger = CSVLogger(tmp_path, name=None, version="log")
    trainer = make_trainer(max_epochs=2, limit_val_batches=0, logger=logger, log_every_n_steps=1)
    trainer.fit(make_model(data), data)
    drawn = data.buffer.of("sample")
    # the same for every number of environments: half way at 50, and at its end from 100 on
    assert [env_steps for _, env_steps, *_ in drawn] == list(range(16, 16 + 16 * 8, 8))
    for batch, env_steps, priorities, _ in drawn:
        beta = min(0.4 + 0.6 * env_steps / 100, 1.0)
        mine = priorities[batch.index.numpy() % data.buffer.capacity]
        expected = mine.min(axis=1, keepdims=True) ** beta / mine**beta
        np.testing.assert_allclose(batch.weight.numpy(), expected, rtol=1e-5)
    assert any((batch.weight < 0.9).any() for batch, *_ in drawn)
    expected = [(env_steps, min(0.4 + 0.6 * env_steps / 100, 1.0)) for env_steps in range(24, 24 + 16 * 8, 8)]
    assert logged(logger.log_dir) == [pytest.approx(row, rel=1e-12) for row in expected]


# -- saving and going on -----------------------------------------------------------------------------------------------


class Tally(gym.Env):
    """Four steps that depend on the actions alone: where all episodes end at once a run can be cut without a trace."""

    observation_space = spaces.Box(-10, 10, (2,), np.float32)
    action_space = spaces.Discrete(3)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.t = self.sum = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        self.t += 1
        self.sum += int(action) - 1
        reward = float(self.sum * self.t) / 4
        return np.array([self.t, self.sum], np.float32), reward, self.t == 4 and self.sum > 0, self.t == 4, {}


class Restored(Callback):
    """Keeps the state of the replay as it is before the first batch."""

    def on_train_start(self, trainer, pl_module):
        buffer = trainer.datamodule.buffer
        self.state = state(buffer) if isinstance(buffer, PrioritizedReplayBuffer) else None


def latest(folder):
    return ModelCheckpoint(
        folder, "latest", every_n_epochs=1, save_on_train_epoch_end=False, enable_version_counter=False
    )


def run(make_trainer, make_model, folder, max_epochs, ckpt_path=None, buffer=None, **kwargs):
    data = make_data(Tally, num_envs=2, learning_starts=24, steps_per_epoch=40, buffer=buffer, **kwargs)
    model, restored = make_model(data), Restored()
    collector = ExperienceCollector(EpsilonGreedy(LinearSchedule(1.0, 0.1, 200)))
    trainer = make_trainer(
        max_epochs=max_epochs, callbacks=[collector, restored, latest(folder)], enable_checkpointing=True
    )
    trainer.fit(model, data, ckpt_path=ckpt_path)
    return model, data, restored


@pytest.mark.parametrize("n_step", [1, 3])
@pytest.mark.parametrize("capacity", [50, 1000])
def test_a_resumed_run_has_the_tree_of_one_that_was_never_interrupted(
    make_trainer, make_model, tmp_path, capacity, n_step
):
    whole = run(make_trainer, make_model, tmp_path / "whole", 4, buffer=Recorded(capacity), n_step=n_step)
    first = run(make_trainer, make_model, tmp_path / "parts", 2, buffer=Recorded(capacity), n_step=n_step)
    checkpoint = tmp_path / "parts" / "latest.ckpt"
    last = run(make_trainer, make_model, tmp_path / "parts", 4, checkpoint, Recorded(capacity), n_step=n_step)
    # at the cut
    assert_same(last[2].state, state(first[1].buffer))
    assert first[1].buffer.max_priority > 1
    assert len(np.unique(first[1].buffer.tree.priorities)) > 10
    # and at the end: the same draws, the same errors, the same tree and the same network
    drawn = [batch.index for batch, *_ in whole[1].buffer.of("sample")]
    in_parts = [batch.index for model, data, _ in (first, last) for batch, *_ in data.buffer.of("sample")]
    assert len(drawn) == len(in_parts) == 20
    assert all(torch.equal(one, other) for one, other in zip(drawn, in_parts, strict=True))
    assert_same(state(last[1].buffer), state(whole[1].buffer))
    for one, other in zip(last[0].state_dict().values(), whole[0].state_dict().values(), strict=True):
        assert torch.equal(one, other)
    one, other = (data.buffer.sample(4, 8, data.dataset.rng, 200) for _, data, _ in (whole, last))
    assert torch.equal(one.index, other.index)
    assert torch.equal(one.weight, other.weight)


def test_a_second_fit_begins_with_new_priorities(make_trainer, make_model):
    data = make_data("Noise-v0", buffer=Recorded(50), steps_per_epoch=80)
    weights = []
    for _ in range(2):
        data.buffer.events.clear()
        make_trainer(limit_val_batches=0).fit(make_model(data), data)
        weights.append((data.buffer.of("sample")[0][2], state(data.buffer)))
    assert set(weights[1][0].tolist()) <= {0.0, 1.0}  # before the first error is known
    assert_same(weights[0][1], weights[1][1])


@pytest.mark.parametrize(
    ("buffer", "message"),
    [
        (partial(Recorded, 60, alpha=0.5), r"^data\.buffer\.alpha: the replay was saved with 0\.6, this one has 0\.5$"),
        (partial(Recorded, 40), r"^data\.buffer"),
        (partial(Recorded, 90), r"^data\.buffer\.capacity"),
    ],
)
def test_going_on_with_another_kind_of_buffer_is_refused_by_name(make_trainer, make_model, tmp_path, buffer, message):
    run(make_trainer, make_model, tmp_path, 2, buffer=Recorded(60))
    with pytest.raises(ValueError, match=message):
        run(make_trainer, make_model, tmp_path, 3, tmp_path / "latest.ckpt", buffer())


def test_going_on_with_priorities_from_a_uniform_replay_is_refused(make_trainer, make_model, tmp_path):
    run(make_trainer, make_model, tmp_path, 1, buffer=ReplayBuffer(60))
    with pytest.raises(ValueError, match=r"^data\.buffer: the saved replay has no alpha, max_priority, priority$"):
        run(make_trainer, make_model, tmp_path, 2, tmp_path / "latest.ckpt", Recorded(60))


def test_the_settings_of_the_buffer_are_saved_as_plain_values(make_trainer, make_model, tmp_path):
    run(make_trainer, make_model, tmp_path, 1, buffer=PrioritizedReplayBuffer(60, 0.7, BETA, 0.01))
    checkpoint = torch.load(tmp_path / "latest.ckpt", weights_only=True)
    beta = {"class_path": "lightning_dqn.schedules.LinearSchedule"}
    assert checkpoint["datamodule_hyper_parameters"]["buffer"] == {
        "class_path": "lightning_dqn.experience.prioritized.PrioritizedReplayBuffer",
        "init_args": {
            "capacity": 60,
            "alpha": 0.7,
            "beta": beta | {"init_args": {"start": 0.4, "end": 1.0, "decay_steps": 100}},
            "epsilon": 0.01,
            "observations": {
                "class_path": "lightning_dqn.experience.observations.WholeObservations",
                "init_args": {},
            },
        },
    }


# -- the command line --------------------------------------------------------------------------------------------------

FIT = [
    "fit",
    "--config=cartpole",
    "--trainer.max_epochs=1",
    "--trainer.check_val_every_n_epoch=1",
    "--trainer.log_every_n_steps=1",
    "--trainer.enable_progress_bar=false",
    "--trainer.enable_model_summary=false",
    "--data.learning_starts=64",
    "--data.steps_per_epoch=128",
    "--data.eval_episodes=2",
    "--data.eval_num_envs=2",
    "--data.max_eval_steps=20",
]
PRIORITIZED = "--data.buffer=lightning_dqn.PrioritizedReplayBuffer"


@pytest.mark.parametrize(
    ("field", "argument", "value"),
    [
        ("data.buffer.alpha", "--data.buffer.alpha=1.5", "1.5"),
        ("data.buffer.beta.end", "--data.buffer.beta.end=1.5", "1.5"),
    ],
)
def test_bad_input_is_answered_in_one_line_that_names_the_field(monkeypatch, field, argument, value):
    def forbidden(*args, **kwargs):
        raise AssertionError("made before the input was checked")

    monkeypatch.setattr("lightning_dqn.experience.datamodule.make_envs", forbidden)
    monkeypatch.setattr(PrioritizedReplayBuffer, "allocate", forbidden)
    with pytest.raises(SystemExit) as ended:
        main([*FIT, PRIORITIZED, argument])
    (line,) = str(ended.value).splitlines()
    assert line.startswith(f"error: {field} must be")
    assert line.endswith(f"got {value}")


def test_a_run_from_the_command_line_anneals_beta_and_goes_on_with_its_priorities():
    per = [*FIT, "--config=per", "--data.buffer.capacity=150", "--data.buffer.beta.decay_steps=300"]
    main(per)
    folder = Path("runs/cartpole/version_0/checkpoints")
    (replay,) = (folder / "replay").iterdir()
    priorities = np.load(replay / "rank0" / "priority.npy")
    assert len(priorities) == 150
    assert (priorities > 0).all()
    assert len(np.unique(priorities)) > 20
    main([*per, "--trainer.max_epochs=2", f"--ckpt_path={folder}/latest.ckpt"])
    rows = logged("runs/cartpole/version_1")
    assert rows[0][0] < 192 < rows[-1][0]  # its file begins with the rows up to the checkpoint
    for env_steps, beta in rows:
        assert beta == pytest.approx(min(0.4 + 0.6 * env_steps / 300, 1.0), rel=1e-12)

"""Garbage in configurations and out of environments: refused by name, before anything is learned from it."""

import contextlib
import io
import math
import re
import warnings
from pathlib import Path

import gymnasium as gym
import numpy as np
import pytest
import yaml
from gymnasium import spaces

from lightning_dqn import ExperienceDataModule
from lightning_dqn.cli import main
from lightning_dqn.experience.faults import EnvironmentFailure
from lightning_dqn.experience.stepping import SeededEnvs
from tests.environments import RecordingBuffer

HUGE = 10**30
GARBAGE = ["nonsense", "-1", "0", "1.5", ".nan", ".inf", "-.inf", str(HUGE), "null", "[1, 2]", "{a: 1}", "true"]
GARBAGE += ["[64, 0]", f"[{HUGE}]", "[0.5, 0.5]", "[]"]


def whole(least, most=2**31 - 1):
    """Accepts whole numbers in a range."""
    return lambda value: type(value) is int and least <= value <= most


def real(fits):
    """Accepts numbers of which something holds."""
    return lambda value: type(value) in (int, float) and fits(value)


def unless_given(accepts):
    return lambda value: value is None or accepts(value)


def one_of(*values):
    return lambda value: any(type(value) is type(one) and value == one for one in values)


def each(count, accepts):
    """Accepts lists, of a length where one is given, of what something else accepts."""
    return lambda value: type(value) is list and count in (None, len(value)) and all(map(accepts, value))


UNIT = real(lambda value: 0 <= value <= 1)
MANY = whole(1)
SIZE = whole(2, 100_000)
SIZES = each(None, whole(1, 100_000))
FINITE = real(lambda value: 0 <= value < math.inf)
# what is fine, said once more and independently of the code; algorithm, then by field what it accepts and a fine value
FIELDS = {
    "double_dqn": {
        "data.num_envs": (whole(1, 50_000 // 3), "3"),  # times n_step at most the capacity
        "data.n_step": (whole(1, 50_000 // 8), "5"),
        "data.batch_size": (whole(1, 50_000), "7"),
        "data.gamma": (UNIT, "0.5"),
        "data.train_frequency": (MANY, "4"),
        "data.gradient_steps": (whole(1, 1_000_000), "2"),
        "data.learning_starts": (whole(0, 20 * 2_448), "100"),
        "data.steps_per_epoch": (MANY, "777"),
        "data.eval_episodes": (whole(1, 1_000_000), "3"),
        "data.eval_num_envs": (MANY, "2"),
        "data.max_eval_steps": (MANY, "50"),
        "data.eval_seed": (whole(0, math.inf), "4"),
        "data.seed": (unless_given(whole(0, math.inf)), "5"),
        "data.reward_clip": (unless_given(real(lambda value: 0 < value < math.inf)), "1"),
        "data.env_timeout": (real(lambda value: 0 < value <= 1_000_000), "9.5"),
        "data.life_loss": (one_of(False), "false"),  # CartPole has no lives
        "data.seed_every_episode": (one_of(True, False), "false"),
        "data.vectorization": (one_of("sync", "native"), "native"),
        "data.on_env_error": (one_of("raise", "restart"), "restart"),
        "data.env_kwargs": (unless_given(one_of({}, {"sutton_barto_reward": True})), "{sutton_barto_reward: true}"),
        "data.wrappers": (one_of([]), "[]"),
        "data.buffer.capacity": (whole(64, 10_000_000), "1000"),
        "model.target_update_period": (whole(1, math.inf), "10"),
        "model.target_update_rate": (real(lambda value: 0 < value <= 1), "0.5"),
        "model.max_skipped_updates": (whole(1, math.inf), "3"),
        "model.optimizer.lr": (FINITE, "0.01"),
        "model.optimizer.eps": (FINITE, "0.001"),
        "model.optimizer.weight_decay": (FINITE, "0.1"),
        "model.optimizer.betas": (each(2, real(lambda value: 0 <= value < 1)), "[0.5, 0.9]"),
        "model.torso.hidden_sizes": (SIZES, "[8, 4]"),
        "collect.save_replay": (one_of(True, False), "false"),
        "collect.overlap": (one_of(False), "false"),  # an iteration takes two steps of all environments
        "collect.explorer.epsilon.start": (UNIT, "0.9"),
        "collect.explorer.epsilon.end": (UNIT, "0.1"),
        "collect.explorer.epsilon.decay_steps": (whole(1, math.inf), "50"),
    },
    "per": {
        "data.buffer.alpha": (UNIT, "0.4"),
        "data.buffer.epsilon": (FINITE, "0.01"),
        "data.buffer.beta.start": (UNIT, "0.3"),
        "data.buffer.beta.end": (UNIT, "0.7"),
        "data.buffer.beta.decay_steps": (whole(1, math.inf), "9"),
    },
    "c51": {
        "model.head.num_atoms": (SIZE, "21"),
        "model.head.v_min": (real(lambda value: -math.inf < value < 100), "-5"),
        "model.head.v_max": (real(lambda value: -100 < value < math.inf), "5.5"),
    },
    "qr_dqn": {"model.head.kappa": (FINITE, "0.5"), "model.head.num_quantiles": (SIZE, "7")},
    "iqn": {
        "model.head.num_samples": (SIZE, "4"),
        "model.head.num_target_samples": (SIZE, "5"),
        "model.head.num_policy_samples": (SIZE, "6"),
        "model.head.num_cosines": (SIZE, "7"),
    },
    "rainbow": {
        "model.head.layer.sigma": (FINITE, "0.3"),
        "model.head.stream.hidden_sizes": (SIZES, "[8]"),
    },
    "munchausen_dqn": {
        "model.target_rule.temperature": (real(lambda value: 0 < value < math.inf), "0.3"),
        "model.target_rule.alpha": (UNIT, "0.2"),
        "model.target_rule.log_policy_min": (real(lambda value: value <= 0), "-2"),
    },
}
CLASSES = ["data.buffer", "data.wrappers", "model.torso", "model.head", "model.target_rule", "collect.explorer"]
CONTRADICTIONS = [
    ("data.batch_size", ["--data.batch_size=64", "--data.buffer.capacity=50"]),
    ("data.buffer.capacity", ["--data.n_step=300", "--data.num_envs=300"]),
    ("data.learning_starts", ["--data.learning_starts=5000", "--trainer.max_epochs=1"]),
    ("collect.overlap", ["--collect.overlap=true", "--data.train_frequency=9"]),
    ("data.wrappers", ["--data.vectorization=native", "--data.wrappers=[lightning_dqn.UnitObservation]"]),
    ("data.vectorization", ["--data.vectorization=native", "--data.env_id=Acrobot-v1"]),
    ("data.env_kwargs", ["--data.env_id=Acrobot-v1", "--data.env_kwargs={sutton_barto_reward: true}"]),
    ("data.env_id", ["--data.env_id=Pendulum-v1"]),
    ("data.action_mask", ["--data.action_mask=mask"]),
    ("data.life_loss", ["--data.life_loss=true", "--data.vectorization=native"]),
    ("data.storage_device", ["--data.storage_device=nowhere"]),
    ("trainer.accumulate_grad_batches", ["--trainer.accumulate_grad_batches=2"]),
    ("trainer.precision", ["--trainer.precision=64-true"]),
    ("model.head.v_min", ["--config=c51", "--model.head.v_min=3", "--model.head.v_max=2"]),
    ("model.target_rule", ["--config=c51", "--model.target_rule=lightning_dqn.Transition"]),
    ("model.torso", ["--model.torso=lightning_dqn.NatureTorso"]),
    ("model.torso", ["--model.torso.hidden_sizes=[100_000, 100_000_000]"]),
    ("model.lr_scheduler", ["--model.lr_scheduler={class_path: torch.optim.lr_scheduler.StepLR}"]),
    ("collect.explorer.exponent", ["--collect.explorer={class_path: EZGreedy, init_args: {exponent: .nan}}"]),
    (
        "collect.explorer.temperature.start",
        [
            "--collect.explorer={class_path: Boltzmann, init_args: {temperature: {class_path: LinearSchedule, "
            "init_args: {start: .nan}}}}"
        ],
    ),
]


class Started(BaseException):
    """The first step was about to be taken: nothing was wrong so far."""


def outcome(args):
    """What the command says of a configuration before it takes a step; ``None`` if it has nothing to say."""
    quiet = ["--trainer.logger=false", "--trainer.enable_checkpointing=false", "--trainer.enable_progress_bar=false"]
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            main(["fit", "--config=cartpole", *args, *quiet])
    except Started:
        return None
    except SystemExit as ended:
        return (ended.code if isinstance(ended.code, str) else said.getvalue()).strip().removeprefix("Seed set to 0\n")
    raise AssertionError(f"it ran: {args}")


def given(field, raw, folder, in_file):
    """A setting on the command line, or in a file that is laid over the others."""
    if not in_file:
        return [f"--{field}={raw}"]
    content = yaml.safe_load(raw)
    for name in reversed(field.split(".")):
        content = {name: content}
    path = Path(folder) / "mine.yaml"
    path.write_text(yaml.safe_dump(content))
    return [f"--config={path}"]


def configurations(rng, count, folder):
    """Arguments, and the name that what is said of them must hold; ``None`` if they are fine."""
    fields = [(algorithm, name) for algorithm, names in FIELDS.items() for name in names]
    for _ in range(count):
        kind = rng.choice(["value", "misspelt", "class", "contradiction"], p=[0.75, 0.1, 0.07, 0.08])
        algorithm, field = fields[rng.integers(len(fields))]
        accepts, fine = FIELDS[algorithm][field]
        before = [f"--config={algorithm}"]
        flat = field.count(".") == 1  # a file would have to name the class as well
        if kind == "value":
            raw = str(rng.choice([*GARBAGE, fine]))
            args = given(field, raw, folder, flat and rng.random() < 0.5)
            yield before + args, None if accepts(yaml.safe_load(raw)) else field
        elif kind == "misspelt":
            i = int(rng.integers(len(field) - 3, len(field)))
            wrong = field[:i] + field[i + 1 :] + ("" if rng.random() < 0.5 else "x")
            yield before + given(wrong, fine, folder, flat and rng.random() < 0.5), wrong.rpartition(".")[2]
        elif kind == "class":
            field = str(rng.choice(CLASSES))
            name = str(rng.choice(["NoSuch", "no.such.Thing", "lightning_dqn.NoSuch", "builtins.print", "json"]))
            yield [f"--{field}={[name] if field == 'data.wrappers' else name}"], field
        else:
            field, args = CONTRADICTIONS[rng.integers(len(CONTRADICTIONS))]
            yield args, field


@pytest.fixture
def _quiet(monkeypatch):
    def starts(self, action):
        raise Started

    monkeypatch.setattr(SeededEnvs, "step", starts)


def check_configurations(seed, count, folder):
    wrong = []
    refused = 0
    for args, name in configurations(np.random.default_rng(seed), count, folder):
        try:
            said = outcome(args)
        except Exception as error:
            wrong.append((args, name, f"{type(error).__name__}: {error}"))
            continue
        refused += said is not None
        named = said is not None and name is not None and all(part in said for part in name.split("."))
        readable = said is None or (said.startswith("error: ") and "\n" not in said and len(said) < 500)
        if (said is None) != (name is None) or (name is not None and not named) or not readable:
            wrong.append((args, name, said))
    print(f"\n{count} configurations: {refused} refused in one line with the field's name, {count - refused} fine")
    assert not wrong, "\n".join(map(str, wrong))


@pytest.mark.usefixtures("_quiet")
@pytest.mark.parametrize(("seed", "count"), [(0, 12), pytest.param(2, 300, marks=pytest.mark.slow)])
def test_garbage_in_a_configuration_is_named(tmp_path, seed, count):
    check_configurations(seed, count, tmp_path)


FLOATS, BYTES = spaces.Box(-9, 9, (2,), np.float32), spaces.Box(0, 255, (2,), np.uint8)
NAN, INF = float("nan"), float("inf")
# by what is spoiled: garbage that must be refused, what is fine although it is odd, and what the message must hold
SPOILS = {
    "floats": (
        [
            None,
            "ab",
            ["1", "2"],
            NAN,
            np.array([NAN, 0]),
            np.array([0, INF]),
            np.zeros(3),
            {},
            b"12",
            object(),
            [[1], [1, 2]],
            np.zeros((1, 2)),
            np.zeros(2, complex),
            np.array([None, 0]),
            np.array([1e300, 0]),
        ],
        [np.array([0.5, 1]), [1, 2], np.array([3, 4]), np.array([1e6, -1e6]), np.array([True, False])],
        "observation",
    ),
    "bytes": (
        [
            np.array([0, 256]),
            np.array([-1, 0]),
            np.array([NAN, 0]),
            [0.5, 1],
            None,
            np.zeros(1, np.uint8),
            "ab",
            [3, 4],
        ],
        [np.array([0, 255], np.uint8), np.array([True, False])],
        "observation",
    ),
    "reward": (
        [
            None,
            NAN,
            INF,
            -INF,
            "1",
            "nan",
            [1.0],
            np.array([1.0]),
            np.zeros(3),
            {},
            1j,
            object(),
            b"1",
            np.float32(NAN),
        ],
        [1, True, np.float32(2), np.int64(3), np.array(4.0), -1e30],
        "reward",
    ),
    "terminated": ([None, "no", NAN, 2, -1, np.array([True]), 0.0, []], [0, np.False_, np.array(False)], "terminated"),
    "truncated": ([None, "no", NAN, 2, -1, np.array([True]), 0.0, []], [0, np.False_, np.array(False)], "truncated"),
    "info": ([None, [], 3, "info", ("legal",)], [{"other": object()}, {1: 2}], "info"),
    "mask": (
        [None, "ab", [0, 0], [1], [1, 0, 1], [[1, 0]], [NAN, 1], ["1", "0"], [None, True], {}, 1],
        [[1, 0], [True, False], np.array([0, 1], np.int8), (0.0, 2.0)],
        "action_mask",
    ),
    "lives": ([NAN, "3", None, [1, 2], {}], [2, 2.0, np.int8(1)], ""),
    "step": ([None, (), (FLOATS.low, 0.0, False, {}), [FLOATS.low, 0.0, False, False, {}]], [], "step"),
    "reset": ([None, FLOATS.low, (FLOATS.low,), [FLOATS.low, {}]], [], "reset"),
}


class Garbled(gym.Env):
    """Spoils one thing in an early step, or in the reset, of every episode whose seed is divisible by three."""

    action_space = spaces.Discrete(2)

    def __init__(self, what, garbage, at):
        self.what, self.garbage, self.at = what, garbage, at
        self.observation_space = BYTES if what == "bytes" else FLOATS

    def reset(self, *, seed=None, options=None):
        self.t, self.spoils = 0, seed % 3 == 0
        observation, *_, info = self.outcome()
        return self.garbage if self.spoils and self.what == "reset" else (observation, info)

    def step(self, action):
        self.t += 1
        outcome = self.outcome()
        return self.garbage if self.spoils and self.what == "step" else outcome

    def outcome(self):
        said = {
            "observation": np.full(2, self.t, self.observation_space.dtype),
            "reward": 1.0,
            "terminated": self.t == 6,
            "truncated": False,
            "info": {"legal": np.ones(2, bool), "lives": 3},
        }
        if self.spoils and self.t == self.at:
            inside = {"mask": "legal", "lives": "lives"}.get(self.what)
            if inside:
                said["info"][inside] = self.garbage
            else:
                said["observation" if self.what in ("floats", "bytes") else self.what] = self.garbage
        return tuple(said.values())


def worlds(rng, count):
    """What to spoil, with what, when, whether that is fine, and what the message must hold."""
    for _ in range(count):
        what = str(rng.choice(list(SPOILS)))
        refused, fine, word = SPOILS[what]
        at = int(rng.integers(0 if what not in ("reward", "terminated", "truncated") else 1, 6))
        i = int(rng.integers(len(refused) + len(fine)))
        yield what, [*refused, *fine][i], at, i >= len(refused), word


def run(make_trainer, make_model, what, garbage, at, **kwargs):
    data = ExperienceDataModule(
        Garbled,
        num_envs=3,
        env_kwargs={"what": what, "garbage": garbage, "at": at},
        buffer=RecordingBuffer(500),
        batch_size=4,
        train_frequency=3,
        gradient_steps=1,
        learning_starts=30,
        steps_per_epoch=30,
        action_mask="legal" if what == "mask" else None,
        life_loss=what == "lives",
        seed=0,
        **kwargs,
    )
    try:
        make_trainer(limit_val_batches=0).fit(make_model(data), data)
    except (EnvironmentFailure, ValueError) as error:
        return data, str(error)
    return data, None


def assert_nothing_got_in(data, fine):
    """Whatever happened, the replay holds numbers that an environment of this kind can mean."""
    rows = data.buffer.all_added if data.buffer.added else None
    if rows is None:
        return
    for part in (rows.observation, rows.next_observation, rows.reward):
        assert np.isfinite(part).all()
    if not fine:
        assert set(rows.reward) <= {1.0}
        assert rows.observation.max(initial=0) <= 6
        assert rows.next_observation.max(initial=0) <= 6


@pytest.mark.parametrize(("seed", "count"), [(0, 30), pytest.param(2, 200, marks=pytest.mark.slow)])
def test_garbage_out_of_an_environment_is_named_and_never_learned_from(make_trainer, make_model, seed, count):
    wrong, refused = [], 0
    for what, garbage, at, fine, word in worlds(np.random.default_rng(seed), count):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            data, said = run(make_trainer, make_model, what, garbage, at)
        assert_nothing_got_in(data, fine)
        refused += said is not None
        # gymnasium melts the dictionaries of all infos into one, so that nobody can tell whose it was
        who = r"an environment" if what == "lives" and garbage == {} else r"environment [012]\b"
        named = said is not None and word in said and re.search(who, said)
        readable = said is None or len(said.splitlines()[0]) < 500
        if fine != (said is None) or not (fine or named) or not readable:
            wrong.append((what, garbage, at, said))
    print(f"\n{count} environments: {refused} refused by index and name, {count - refused} fine, 0 rows of garbage")
    assert not wrong, "\n".join(map(str, wrong))


@pytest.mark.parametrize(
    "space", [spaces.Box(-1, 1, (2,)), spaces.MultiDiscrete([2, 2]), spaces.MultiBinary(3), spaces.Tuple([FLOATS])]
)
def test_other_actions_than_discrete_ones_are_refused(space):
    def make():
        env = Garbled("reward", 0.0, 1)
        env.action_space = space
        return env

    with pytest.raises(ValueError, match=r"^data\.env_id: value-based learning needs a Discrete action space"):
        _ = ExperienceDataModule(make).num_actions

"""Hyper-parameters as plain values: what they look like, and that a checkpoint rebuilds the module from them."""

import enum
import math
import warnings
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR, LinearLR

from lightning_dqn.experience.exploration import Boltzmann, EpsilonGreedy
from lightning_dqn.functional import huber_error, squared_error
from lightning_dqn.hparams import describe, differences, nulls
from lightning_dqn.learner.convolutions import NatureTorso
from lightning_dqn.learner.distributions import ExpectedReturn
from lightning_dqn.learner.heads import DuelingStream, ExpectedHead, LinearStream
from lightning_dqn.learner.module import DQNLightningModule
from lightning_dqn.learner.networks import MLPTorso, Torso
from lightning_dqn.learner.targets import DoubleQLearning, QLearning, TargetRule
from lightning_dqn.schedules import LinearSchedule

HERE = __name__


class ScaledRule(TargetRule):
    """A strategy with arguments of its own."""

    def __init__(self, scale: float, inner: TargetRule = QLearning()):
        self.scale = scale
        self.inner = inner

    def __call__(self, transition, online, target):
        return ExpectedReturn(self.scale * self.inner(transition, online, target).q_values)


class ForgetfulRule(QLearning):
    """A strategy that does not keep its argument."""

    def __init__(self, scale: float = 1.0):
        self._factor = scale


class LooseRule(QLearning):
    """A strategy whose arguments have no names."""

    def __init__(self, **options: float):
        self.options = options


def torso_of_no_kind(observation_shape, width=5):
    return MLPTorso(observation_shape, (width,))


def torso_of_a_kind(observation_shape, width: int = 5) -> MLPTorso:
    return MLPTorso(observation_shape, (width,))


def optimizer_of_no_kind(parameters):
    return torch.optim.SGD(parameters, lr=0.5)


def scheduler_of_another_kind(optimizer) -> int:
    return ExponentialLR(optimizer, gamma=0.5)


class CentredTorso(MLPTorso):
    """A torso of the user's own."""

    def forward(self, observation):
        """Features."""
        return super().forward(observation - observation.mean(dim=1, keepdim=True))


class Reward(enum.IntEnum):
    """Plain numbers are instances of it, but not the other way round."""

    ONE = 1


def small_torso(observation_shape) -> Torso:
    """A torso factory that is a function."""
    return MLPTorso(observation_shape, hidden_sizes=(5,))


def save(module, path):
    """Saves the module the way training does, without training."""
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(path)
    return path


def observations():
    return torch.randn(16, 4, generator=torch.Generator().manual_seed(0))


def quiet(function, *args, **kwargs):
    """Calls it and lets no warning pass."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        return function(*args, **kwargs)


# describe


@pytest.mark.parametrize("value", [None, True, 3, -0.5, "text", [1, 2], {"a": 1, "b": {"c": [None]}}, math.inf])
def test_plain_values_stay_as_they_are(value):
    assert describe(value) == value
    assert type(describe(value)) is type(value)


def test_tuples_become_lists_and_keys_become_strings():
    assert describe((1, (2, 3))) == [1, [2, 3]]
    assert describe({1: (2,)}) == {"1": [2]}


def test_a_class_becomes_its_path():
    assert describe(NatureTorso) == {"class_path": "lightning_dqn.learner.convolutions.NatureTorso"}


def test_a_function_becomes_its_path():
    assert describe(squared_error) == "lightning_dqn.functional.squared_error"
    assert describe(len) == "builtins.len"


def test_a_partial_becomes_its_path_and_arguments():
    assert describe(partial(MLPTorso, hidden_sizes=(5, 6))) == {
        "class_path": "lightning_dqn.learner.networks.MLPTorso",
        "init_args": {"hidden_sizes": [5, 6]},
    }


def test_partials_within_partials():
    assert describe(partial(ExpectedHead, stream=partial(DuelingStream, hidden_sizes=(9,)), loss=squared_error)) == {
        "class_path": "lightning_dqn.learner.heads.ExpectedHead",
        "init_args": {
            "stream": {"class_path": "lightning_dqn.learner.heads.DuelingStream", "init_args": {"hidden_sizes": [9]}},
            "loss": "lightning_dqn.functional.squared_error",
        },
    }


def test_a_strategy_object_becomes_its_class_and_arguments():
    assert describe(DoubleQLearning()) == {
        "class_path": "lightning_dqn.learner.targets.DoubleQLearning",
        "init_args": {},
    }
    assert describe(EpsilonGreedy(LinearSchedule(1.0, 0.1, 500))) == {
        "class_path": "lightning_dqn.experience.exploration.EpsilonGreedy",
        "init_args": {
            "epsilon": {
                "class_path": "lightning_dqn.schedules.LinearSchedule",
                "init_args": {"start": 1.0, "end": 0.1, "decay_steps": 500},
            }
        },
    }
    assert describe(ScaledRule(0.5, DoubleQLearning())) == {
        "class_path": f"{HERE}.ScaledRule",
        "init_args": {
            "scale": 0.5,
            "inner": {"class_path": "lightning_dqn.learner.targets.DoubleQLearning", "init_args": {}},
        },
    }


def local_class():
    class Local(MLPTorso):
        pass

    return Local


@pytest.mark.parametrize(
    "value",
    [
        lambda shape: MLPTorso(shape),
        local_class(),
        partial(MLPTorso, (4,)),
        ForgetfulRule(2.0),
        LooseRule(scale=2.0),
        [lambda: 0],
        {"key": lambda: 0},
        partial(MLPTorso, hidden_sizes=lambda: 0),
        {1, 2},
        b"bytes",
        torch.ones(2),
        np.ones(2),
        torch.device("cpu"),
        torch.float32,
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_cannot_be_written_down_is_refused(value):
    with pytest.raises(TypeError):
        describe(value)


def test_the_refusal_names_class_and_argument():
    with pytest.raises(TypeError, match="ForgetfulRule does not keep its argument 'scale'"):
        describe(ForgetfulRule())


@pytest.mark.parametrize("value", [np.float64(0.25), np.float32(0.25), np.int64(3), np.bool_(True), Reward.ONE])
def test_subclasses_of_plain_values_become_plain_or_are_refused(value):
    # a NumPy float64 is a float and an IntEnum an int, but a checkpoint with either is refused when it is loaded
    try:
        described = describe(value)
    except TypeError:
        return
    assert type(described) in (bool, int, float, str)
    assert described == value


# the module's hyper-parameters


def test_hyper_parameters_are_the_arguments_of_the_module():
    module = DQNLightningModule((4,), 3, torso=partial(MLPTorso, hidden_sizes=(8,)), target_update_rate=0.5)

    assert dict(module.hparams) == {
        "_instantiator": "lightning.pytorch.cli.instantiate_module",
        "observation_shape": [4],
        "num_actions": 3,
        "torso": {"class_path": "lightning_dqn.learner.networks.MLPTorso", "init_args": {"hidden_sizes": [8]}},
        "head": {"class_path": "lightning_dqn.learner.heads.ExpectedHead"},
        "target_rule": {"class_path": "lightning_dqn.learner.targets.DoubleQLearning", "init_args": {}},
        "optimizer": {"class_path": "torch.optim.adam.Adam"},
        "lr_scheduler": None,
        "target_update_period": 1,
        "target_update_rate": 0.5,
        "max_skipped_updates": 10,
        "compile_updates": False,
    }


def test_shape_and_number_of_actions_may_be_numpy_integers(tmp_path):
    module = DQNLightningModule(np.array([4]), np.int64(3))

    loaded = DQNLightningModule.load_from_checkpoint(save(module, tmp_path / "x.ckpt"), trust=[HERE])

    assert torch.equal(loaded(observations()), module(observations()))


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"torso": partial(MLPTorso, hidden_sizes=(8, 6))},
        {"torso": partial(MLPTorso, hidden_sizes=())},
        {"torso": CentredTorso},
        {"torso": small_torso},
        {"head": partial(ExpectedHead, stream=DuelingStream)},
        {"head": partial(ExpectedHead, stream=partial(DuelingStream, hidden_sizes=(9,)), loss=squared_error)},
        {"head": partial(ExpectedHead, stream=partial(LinearStream, hidden_sizes=[9]))},
        {"head": partial(ExpectedHead, layer=partial(nn.Linear, bias=False))},
    ],
    ids=["default", "mlp", "linear", "own-torso", "function", "dueling", "deep-dueling", "deep-linear", "no-bias"],
)
def test_a_checkpoint_rebuilds_the_network(arguments, tmp_path):
    module = quiet(DQNLightningModule, [4], 3, **arguments)
    path = save(module, tmp_path / "x.ckpt")
    torch.load(path, weights_only=True)

    loaded = DQNLightningModule.load_from_checkpoint(path, trust=[HERE])

    assert type(loaded.online.torso) is type(module.online.torso)
    assert str(loaded.online) == str(module.online)
    assert loaded.online.head.loss is module.online.head.loss
    assert torch.equal(loaded(observations()), module(observations()))
    assert torch.equal(loaded.target(observations()).q_values, module.target(observations()).q_values)


def test_a_checkpoint_rebuilds_the_target_rule(tmp_path):
    module = DQNLightningModule([4], 3, target_rule=ScaledRule(0.5, DoubleQLearning()))

    rule = DQNLightningModule.load_from_checkpoint(save(module, tmp_path / "x.ckpt"), trust=[HERE]).target_rule

    assert type(rule) is ScaledRule
    assert rule.scale == 0.5
    assert type(rule.inner) is DoubleQLearning


def test_a_checkpoint_rebuilds_optimizer_and_scheduler(tmp_path):
    module = DQNLightningModule(
        [4],
        3,
        optimizer=partial(torch.optim.RMSprop, lr=0.125, alpha=0.5),
        lr_scheduler=partial(LinearLR, start_factor=0.5, total_iters=7),
        target_update_period=9,
        target_update_rate=0.75,
    )
    loaded = DQNLightningModule.load_from_checkpoint(save(module, tmp_path / "x.ckpt"), trust=[HERE])

    configured = loaded.configure_optimizers()
    optimizer, scheduler = configured["optimizer"], configured["lr_scheduler"]["scheduler"]
    assert type(optimizer) is torch.optim.RMSprop
    assert optimizer.defaults["alpha"] == 0.5
    assert type(scheduler) is LinearLR
    assert scheduler.total_iters == 7
    assert scheduler.get_last_lr() == [0.0625]
    assert (loaded.target_update_period, loaded.target_update_rate) == (9, 0.75)


def test_tuples_among_optimizer_arguments(tmp_path):
    module = DQNLightningModule([4], 3, optimizer=partial(torch.optim.Adam, lr=1e-3, betas=(0.5, 0.75)))

    optimizer = DQNLightningModule.load_from_checkpoint(
        save(module, tmp_path / "x.ckpt"), trust=[HERE]
    ).configure_optimizers()

    assert tuple(optimizer.defaults["betas"]) == (0.5, 0.75)


def test_arguments_can_be_replaced_when_loading(tmp_path):
    path = save(DQNLightningModule([4], 3, target_update_rate=0.5), tmp_path / "x.ckpt")

    loaded = DQNLightningModule.load_from_checkpoint(
        path, target_update_rate=0.25, optimizer=partial(torch.optim.SGD, lr=0.5)
    )

    assert loaded.target_update_rate == 0.25
    assert type(loaded.configure_optimizers()) is torch.optim.SGD


def test_a_loaded_module_can_be_saved_and_loaded_again(tmp_path):
    module = DQNLightningModule(
        [4],
        3,
        torso=partial(MLPTorso, hidden_sizes=(8,)),
        head=partial(ExpectedHead, stream=partial(DuelingStream, hidden_sizes=(9,))),
        target_rule=ScaledRule(0.5),
        optimizer=partial(torch.optim.SGD, lr=0.125),
        lr_scheduler=partial(LinearLR, total_iters=7),
    )
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not saved with the hyper-parameters.*")
        once = DQNLightningModule.load_from_checkpoint(save(module, tmp_path / "1.ckpt"), trust=[HERE])
        twice = DQNLightningModule.load_from_checkpoint(save(once, tmp_path / "2.ckpt"), trust=[HERE])

    assert set(twice.hparams) == set(module.hparams)
    assert str(twice.online) == str(module.online)
    assert torch.equal(twice(observations()), module(observations()))
    assert twice.target_rule.scale == 0.5
    configured = twice.configure_optimizers()
    assert type(configured["optimizer"]) is torch.optim.SGD
    assert configured["optimizer"].defaults["lr"] == 0.125
    assert configured["lr_scheduler"]["scheduler"].total_iters == 7


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("torso", lambda shape: MLPTorso(shape, hidden_sizes=(5,))),
        ("target_rule", ForgetfulRule(2.0)),
        ("optimizer", lambda parameters: torch.optim.SGD(parameters, lr=0.5)),
        ("optimizer", partial(torch.optim.Adam, lr=torch.tensor(0.5))),
        ("lr_scheduler", lambda optimizer: ExponentialLR(optimizer, gamma=0.5)),
        ("torso", torso_of_no_kind),
        ("torso", partial(torso_of_a_kind, width=6)),
        ("optimizer", optimizer_of_no_kind),
        ("lr_scheduler", scheduler_of_another_kind),
    ],
    ids=["torso", "target_rule", "optimizer", "tensor-lr", "lr_scheduler", "no kind", "partial", "sgd", "other kind"],
)
def test_what_cannot_be_saved_is_warned_about_and_can_be_given_again(name, value, tmp_path):
    with pytest.warns(UserWarning, match=rf"^{name} is not saved with the hyper-parameters.*load_from_checkpoint"):
        module = DQNLightningModule([4], 3, **{name: value})
    assert name not in module.hparams
    path = save(module, tmp_path / "x.ckpt")
    torch.load(path, weights_only=True)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        loaded = DQNLightningModule.load_from_checkpoint(path, trust=[HERE], **{name: value})

    assert torch.equal(loaded(observations()), module(observations()))
    kept = {"optimizer": "optimizer_factory", "lr_scheduler": "lr_scheduler_factory"}.get(name, name)
    if name != "torso":
        assert getattr(loaded, kept) is value


def test_a_function_that_does_not_say_what_it_returns_is_told_what_to_write(tmp_path):
    with pytest.warns(UserWarning, match=rf"{HERE}.torso_of_no_kind does not say what it returns; write `-> Torso` "):
        DQNLightningModule([4], 3, torso=torso_of_no_kind)
    with pytest.warns(UserWarning, match=r"torso_of_a_kind cannot be saved, as it is a function; make it a class"):
        DQNLightningModule([4], 3, torso=partial(torso_of_a_kind, width=6))

    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*not saved with the hyper-parameters.*")
        module = DQNLightningModule([4], 3, torso=torso_of_a_kind)
        loaded = DQNLightningModule.load_from_checkpoint(save(module, tmp_path / "x.ckpt"), trust=[HERE])

    assert torch.equal(loaded(observations()), module(observations()))


def test_the_warning_points_at_the_line_that_makes_the_module():
    with pytest.warns(UserWarning, match="torso is not saved") as caught:
        DQNLightningModule([4], 3, torso=lambda shape: MLPTorso(shape))

    assert caught[0].filename == __file__


def test_a_rate_that_is_a_numpy_number_leaves_the_checkpoint_loadable(tmp_path):
    module = DQNLightningModule([4], 3, target_update_rate=np.float64(0.25))

    loaded = DQNLightningModule.load_from_checkpoint(save(module, tmp_path / "x.ckpt"), trust=[HERE])

    assert loaded.target_update_rate == 0.25


class ModuleWithMore(DQNLightningModule):
    """A subclass with an argument of its own, handed to the parent in part."""

    def __init__(self, temperature: float = 1.0, schedule: LinearSchedule = LinearSchedule(), **kwargs):
        super().__init__(**kwargs)
        self.temperature = temperature
        self.schedule = schedule


def test_a_checkpoint_rebuilds_a_subclass(tmp_path):
    module = ModuleWithMore(
        0.5,
        LinearSchedule(1.0, 0.5, 3),
        observation_shape=[4],
        num_actions=3,
        torso=partial(MLPTorso, hidden_sizes=(8,)),
    )

    loaded = ModuleWithMore.load_from_checkpoint(save(module, tmp_path / "x.ckpt"), trust=[HERE])

    assert type(loaded) is ModuleWithMore
    assert loaded.temperature == 0.5
    assert loaded.schedule == LinearSchedule(1.0, 0.5, 3)
    assert torch.equal(loaded(observations()), module(observations()))


def test_a_boltzmann_schedule_can_be_described_too():
    described = describe(Boltzmann(LinearSchedule(2.0, 0.5, 7)))

    assert described["init_args"]["temperature"]["init_args"] == {"start": 2.0, "end": 0.5, "decay_steps": 7}


def test_the_default_loss_is_written_down_when_given():
    described = describe(partial(ExpectedHead, loss=huber_error))

    assert described["init_args"] == {"loss": "lightning_dqn.functional.huber_error"}


def test_the_module_is_a_lightning_module():
    assert issubclass(DQNLightningModule, LightningModule)


@pytest.mark.parametrize(
    ("saved", "own", "said"),
    [
        ({"a": 1, "b": [1, 2]}, {"a": 1, "b": (1, 2)}, []),
        ({"a": 1}, {"a": 2}, ["model.a was 1 and is now 2"]),
        ({"a": {"x": 1, "y": 2}, "_b": 1}, {"a": {"x": 1, "y": 3}, "_b": 2}, ["model.a.y was 2 and is now 3"]),
        ({"a": 1}, {"b": 1}, []),
        ({"a": "Old"}, {"a": {"class_path": "New"}}, ["model.a was Old and is now New"]),
        ({"a": [1, 2]}, {"a": [1]}, ["model.a was [1, 2] and is now [1]"]),
    ],
)
def test_differences_are_named(saved, own, said):
    assert differences(saved, own, "model") == said


def test_what_is_null_and_must_not_be_is_named():
    class Own:
        def __init__(self, size: int = 3, scale: float | None = 2.0, needed: int = None, other: Any = 1): ...  # noqa: RUF013

    assert nulls(Own, {"size": None, "scale": None, "needed": None, "other": None, "unknown": None}, "data") == [
        "data.size"
    ]
    assert nulls(Own, {"size": 1}, "data") == []
    inside = {"class_path": "lightning_dqn.ReplayBuffer", "init_args": {"capacity": None, "observations": None}}
    assert nulls(Own, {"other": inside}, "data") == ["data.other.capacity"]
    assert nulls(Own, {"other": {"class_path": "no.such.Thing", "init_args": {"x": None}}}, "data") == []
    assert nulls(print, {"sep": None}, "data") == []

"""A run that resumes with other settings: each of them is used, or refused in one line that names it."""

import warnings
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from torch.optim.lr_scheduler import CosineAnnealingLR, LinearLR, ReduceLROnPlateau

from lightning_dqn import (
    Boltzmann,
    CategoricalHead,
    DQNLightningModule,
    DuelingStream,
    EpsilonGreedy,
    ExpectedHead,
    ExperienceCollector,
    ExperienceDataModule,
    EZGreedy,
    LinearSchedule,
    MLPTorso,
    PrioritizedReplayBuffer,
    QLearning,
    ReplayBuffer,
)
from lightning_dqn.learner.optimizers import use_new_settings
from lightning_dqn.learner.resumed_settings import changed_settings, check_network

ADAM = partial(torch.optim.Adam, lr=1e-3)
LINEAR = partial(LinearLR, start_factor=1.0, end_factor=0.1, total_iters=40)


class LearningRates(Callback):
    """Notes the learning rate of every iteration."""

    def __init__(self):
        self.values = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.values.append(trainer.optimizers[0].param_groups[0]["lr"])


def fit(make_trainer, folder, max_epochs, explorer=None, data=(), ckpt_path=None, trainer=(), **model):
    torch.manual_seed(0)
    module_settings = {"torso": partial(MLPTorso, hidden_sizes=(8,)), "optimizer": ADAM} | model
    data = ExperienceDataModule(
        "CartPole-v1",
        **{
            "num_envs": 2,
            "learning_starts": 20,
            "steps_per_epoch": 40,
            "train_frequency": 4,
            "batch_size": 8,
            "buffer": ReplayBuffer(200),
            "eval_episodes": 1,
            "seed": 0,
        }
        | dict(data),
    )
    module = DQNLightningModule(data.observation_shape, data.num_actions, **module_settings)
    rates = LearningRates()
    latest = ModelCheckpoint(folder, "latest", save_on_train_epoch_end=False, enable_version_counter=False)
    collector = ExperienceCollector(explorer or EpsilonGreedy(LinearSchedule(1.0, 0.1, 200)))
    trainer = make_trainer(
        max_epochs=max_epochs, callbacks=[rates, collector, latest], enable_checkpointing=True, **dict(trainer)
    )
    trainer.fit(module, data, ckpt_path=ckpt_path)
    return trainer, module, rates.values


@pytest.fixture
def resume(make_trainer, tmp_path):
    """Save a run of one epoch under some settings, and resume it for another under others."""

    def run(before, after):
        fit(make_trainer, tmp_path / "one", 1, **before)
        return fit(make_trainer, tmp_path / "two", 2, ckpt_path=tmp_path / "one/latest.ckpt", **after)

    return run


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ({}, {"optimizer": partial(torch.optim.Adam, lr=1e-5)}),
        ({"lr_scheduler": LINEAR}, {"lr_scheduler": LINEAR, "optimizer": partial(torch.optim.Adam, lr=1e-5)}),
        ({"lr_scheduler": LINEAR}, {"lr_scheduler": partial(LINEAR, total_iters=80)}),
        ({"lr_scheduler": LINEAR}, {"lr_scheduler": partial(CosineAnnealingLR, T_max=30)}),
        ({"lr_scheduler": LINEAR}, {}),
        ({}, {"lr_scheduler": LINEAR}),
        ({"optimizer": torch.optim.Adam}, {"optimizer": partial(torch.optim.Adam, lr=2e-3)}),
    ],
    ids=["lr", "lr-under-schedule", "schedule", "other-schedule", "no-schedule", "new-schedule", "default"],
)
def test_resume_with_another_learning_rate_continues_as_if_it_had_been_from_the_start(
    resume, make_trainer, tmp_path, before, after
):
    with pytest.warns(UserWarning, match=r"other settings: model\.(optimizer|lr_scheduler).*This run uses its own\."):
        _, _, resumed = resume(before, after)
    _, _, whole = fit(make_trainer, tmp_path / "whole", 2, **after)
    assert resumed == pytest.approx(whole[10:], rel=1e-9)
    assert len(resumed) == 10


def test_resume_with_other_numbers_of_the_optimizer_uses_them_and_keeps_its_moments(resume):
    with pytest.warns(UserWarning, match=r"model\.optimizer\.weight_decay was 0\.?0? and is now 0\.5"):
        trainer, _, _ = resume({}, {"optimizer": partial(ADAM, weight_decay=0.5)})
    group = trainer.optimizers[0].param_groups[0]
    assert (group["weight_decay"], group["lr"]) == (0.5, 1e-3)
    steps = {int(state["step"]) for state in trainer.optimizers[0].state.values()}
    assert steps == {trainer.global_step * 8}


def test_resume_with_the_same_settings_says_nothing_and_is_exact(resume, make_trainer, tmp_path):
    settings = {"lr_scheduler": LINEAR}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*other settings.*")
        _, resumed, rates = resume(settings, settings)
    _, whole, all_rates = fit(make_trainer, tmp_path / "whole", 2, **settings)
    assert rates == all_rates[10:]
    assert all(torch.equal(a, b) for a, b in zip(resumed.parameters(), whole.parameters(), strict=True))


C51 = {"head": CategoricalHead, "target_rule": QLearning()}


@pytest.mark.parametrize(
    ("before", "after", "said"),
    [
        ({}, {"torso": partial(MLPTorso, hidden_sizes=(9,))}, r"model\.torso is not the network in the checkpoint: "),
        ({}, {"torso": partial(MLPTorso, hidden_sizes=(8, 8))}, r"model\.torso is not the network in the checkpoint: "),
        (
            {},
            {"head": partial(ExpectedHead, stream=DuelingStream)},
            r"model\.head is not the network in the checkpoint",
        ),
        ({}, C51, r"model\.head is not the network in the checkpoint: "),
        (C51, C51 | {"head": partial(CategoricalHead, v_max=20.0)}, r"model\.head\.v_max was \S+ and is now 20\.0\. "),
        ({}, {"optimizer": torch.optim.RMSprop}, r"model\.optimizer was torch\S+Adam and is now torch\S+RMSprop\. "),
        (
            {"lr_scheduler": partial(ReduceLROnPlateau, patience=3)},
            {"lr_scheduler": partial(ReduceLROnPlateau, patience=4)},
            r"model\.lr_scheduler\.patience was 3 and is now 4\. A schedule that follows a metric cannot be resumed",
        ),
        ({}, {"optimizer": partial(ADAM, amsgrad=True)}, r"model\.optimizer\.amsgrad was False .* has no state for it"),
        ({}, {"data": {"buffer": PrioritizedReplayBuffer(200)}}, r"data\.buffer"),
        (
            {},
            {"data": {"buffer": ReplayBuffer(50)}},
            r"data\.buffer\.capacity: another one than that of the saved replay",
        ),
        (
            {"data": {"buffer": PrioritizedReplayBuffer(200, alpha=0.5)}},
            {"data": {"buffer": PrioritizedReplayBuffer(200, alpha=0.6)}},
            r"data\.buffer\.alpha",
        ),
    ],
    ids=[
        "torso",
        "deeper",
        "dueling",
        "c51",
        "support",
        "optimizer",
        "plateau",
        "amsgrad",
        "prioritised",
        "capacity",
        "alpha",
    ],
)
def test_resume_with_what_the_run_must_keep_is_refused_by_name(resume, before, after, said):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(ValueError, match=said) as refused:
            resume(before, after)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("after", "said"),
    [
        (
            {"explorer": EpsilonGreedy(LinearSchedule(1.0, 0.2, 200))},
            r"collect\.explorer\.epsilon\.end was 0\.1 and is",
        ),
        (
            {"explorer": Boltzmann(LinearSchedule(1.0, 0.1, 9))},
            r"collect\.explorer was \S+EpsilonGreedy and is now \S+Bol",
        ),
        (
            {"explorer": EZGreedy(LinearSchedule(1.0, 0.1, 9))},
            r"collect\.explorer was \S+EpsilonGreedy and is now \S+EZG",
        ),
        ({"target_update_rate": 1.0}, r"model\.target_update_rate was 0\.005 and is now 1\.0"),
        ({"target_update_period": 7}, r"model\.target_update_period was 1 and is now 7"),
        ({"target_rule": QLearning()}, r"model\.target_rule was \S+DoubleQLearning and is now \S+\.QLearning"),
        ({"max_skipped_updates": 3}, r"model\.max_skipped_updates was 10 and is now 3"),
        ({"data": {"gamma": 0.5}}, r"data\.gamma was 0\.99 and is now 0\.5"),
        ({"data": {"n_step": 3}}, r"data\.n_step was 1 and is now 3"),
        ({"data": {"n_step": 3, "num_envs": 4}}, r"data\.num_envs was 2 and is now 4"),
        ({"data": {"num_envs": 4}}, r"data\.num_envs was 2 and is now 4"),
        ({"data": {"num_envs": 1}}, r"data\.num_envs was 2 and is now 1"),
        ({"data": {"batch_size": 4}}, r"data\.batch_size was 8 and is now 4"),
        ({"data": {"gradient_steps": 2}}, r"data\.gradient_steps was 8 and is now 2"),
        ({"data": {"train_frequency": 2}}, r"data\.train_frequency was 4 and is now 2"),
        ({"data": {"steps_per_epoch": 20}}, r"data\.steps_per_epoch was 40 and is now 20"),
        ({"data": {"buffer": ReplayBuffer(300)}}, r"data\.buffer\.capacity was 200 and is now 300"),
        ({"data": {"reward_clip": 0.5}}, r"data\.reward_clip was None and is now 0\.5"),
        ({"data": {"seed": 5}}, r"data\.seed was 0 and is now 5"),
        ({"data": {"eval_episodes": 3}}, r"data\.eval_episodes was 1 and is now 3"),
        ({"data": {"vectorization": "async"}}, r"data\.vectorization was sync and is now async"),
        ({"data": {"env_kwargs": {"sutton_barto_reward": True}}}, r"data\.env_kwargs was None and is now \{"),
    ],
)
def test_resume_with_another_setting_that_can_change_uses_it_and_names_it(resume, after, said):
    with pytest.warns(UserWarning, match=rf"saved with other settings: .*{said}.*This run uses its own\."):
        trainer, _, _ = resume({}, after)
    assert trainer.current_epoch == 2


def test_resume_from_the_prioritised_replay_into_a_uniform_one_keeps_what_fits(resume):
    with pytest.warns(UserWarning, match=r"data\.buffer was \S+PrioritizedReplayBuffer and is now \S+\.ReplayBuffer"):
        resume({"data": {"buffer": PrioritizedReplayBuffer(200)}}, {})


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_evaluation_of_a_checkpoint_with_another_network_is_refused_by_name(make_trainer, tmp_path, command):
    fit(make_trainer, tmp_path, 1)
    data = ExperienceDataModule("CartPole-v1", eval_episodes=1)
    module = DQNLightningModule(data.observation_shape, data.num_actions, torso=partial(MLPTorso, hidden_sizes=(9,)))
    with pytest.raises(ValueError, match=r"^ckpt_path: model\.torso is not the network in the checkpoint: "):
        getattr(make_trainer(), command)(module, data, ckpt_path=tmp_path / "latest.ckpt")


def test_resume_under_a_schedule_that_follows_a_metric_uses_other_numbers_of_the_optimizer(resume):
    plateau = {"lr_scheduler": partial(ReduceLROnPlateau, patience=3)}
    with pytest.warns(UserWarning, match=r"model\.optimizer\.weight_decay"):
        trainer, _, _ = resume(plateau, plateau | {"optimizer": partial(ADAM, weight_decay=0.5)})
    assert trainer.optimizers[0].param_groups[0]["weight_decay"] == 0.5


def test_resume_with_a_trainer_that_has_trained_is_refused(make_trainer, tmp_path):
    trainer, module, _ = fit(make_trainer, tmp_path, 1)
    with pytest.raises(ValueError, match=r"^ckpt_path: this Trainer has trained before\. Make a new Trainer"):
        trainer.fit(module, trainer.datamodule, ckpt_path=tmp_path / "latest.ckpt")


# parts


def test_check_network_names_the_first_tensor_that_does_not_fit():
    own = {"online.torso.a": torch.zeros(2), "online.head.b": torch.zeros(3)}
    check_network(own, own)
    for saved, said in [
        (
            own | {"online.head.b": torch.zeros(4)},
            r"model\.head .*online\.head\.b has shape \(4,\) there and \(3,\) here",
        ),
        ({"online.torso.a": torch.zeros(2)}, r"model\.head .*online\.head\.b has shape None there"),
        (
            own | {"online.torso.c": torch.zeros(4)},
            r"model\.torso .*online\.torso\.c has shape \(4,\) there and None here",
        ),
    ]:
        with pytest.raises(ValueError, match=said):
            check_network(saved, own)


def test_changed_settings_compares_classes_by_name_and_arguments_with_their_defaults():
    own = {"torso": {"class_path": "lightning_dqn.learner.networks.MLPTorso", "init_args": {}}}
    assert changed_settings({"torso": "lightning_dqn.MLPTorso"}, own) == []
    saved = {"optimizer": {"class_path": "torch.optim.Adam", "init_args": {"lr": 1e-3, "betas": [0.9, 0.999]}}}
    assert changed_settings(saved, {"optimizer": {"class_path": "torch.optim.adam.Adam"}}) == []
    lower = {"optimizer": {"class_path": "torch.optim.adam.Adam", "init_args": {"lr": 1e-5}}}
    assert changed_settings(saved, lower) == ["model.optimizer.lr was 0.001 and is now 1e-05"]
    assert changed_settings({"optimizer": "torch.optim.adam.Adam"}, lower) == [
        "model.optimizer.lr was 0.001 and is now 1e-05"
    ]


def test_use_new_settings_keeps_the_moments_and_moves_the_schedule():
    weight = torch.nn.Parameter(torch.ones(1))
    optimizer, fresh = (torch.optim.Adam([weight], lr=lr, eps=eps) for lr, eps in ((1.0, 1e-8), (0.5, 1e-3)))
    weight.grad = torch.ones(1)
    optimizer.step()
    moment = optimizer.state[weight]["exp_avg"].clone()
    scheduler = use_new_settings(
        optimizer, fresh, partial(LinearLR, start_factor=1.0, end_factor=0.0, total_iters=10), 4
    )
    assert optimizer.param_groups[0]["eps"] == 1e-3
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.5 * 0.6)
    assert scheduler.last_epoch == 4
    assert optimizer.state[weight]["exp_avg"] == moment
    assert use_new_settings(optimizer, fresh, None, 4) is None
    assert optimizer.param_groups[0]["lr"] == 0.5

"""The learner: its updates against loops written by hand, and its life inside a Trainer."""

import csv
import math
from functools import partial
from types import SimpleNamespace

import gymnasium as gym
import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    GradientAccumulationScheduler,
    LearningRateMonitor,
    ModelCheckpoint,
)
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy, FSDPStrategy
from torch import nn, tensor
from torch.nn import functional as F
from torch.optim.lr_scheduler import LinearLR, StepLR

from lightning_dqn import (
    DoubleQLearning,
    DQNLightningModule,
    EpsilonGreedy,
    ExpectedHead,
    ExperienceCollector,
    ExperienceDataModule,
    LinearSchedule,
    MLPTorso,
    QLearning,
    ReplayBatch,
    ReplayBuffer,
    TargetRule,
    Torso,
    Transition,
)
from lightning_dqn.experience.evaluation import PlayedEpisodes
from lightning_dqn.functional import huber_error, squared_error
from lightning_dqn.learner.distributions import ExpectedReturn

FEATURES, ACTIONS, BATCH_SIZE = 4, 3, 8

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
]


class Batches:
    """A dataloader that is nothing but a list."""

    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


def make_batches(count, num_updates, batch_size=BATCH_SIZE, seed=0, **replaced):
    """Random minibatches with everything in them: terminal states, rewards of both signs, unequal weights."""
    generator = torch.Generator().manual_seed(seed)

    def batch():
        rows = (num_updates, batch_size)
        fields = {
            "observation": torch.randn(*rows, FEATURES, generator=generator),
            "action": torch.randint(ACTIONS, rows, generator=generator),
            "reward": 3 * torch.randn(rows, generator=generator),
            "discount": 0.9 * (torch.rand(rows, generator=generator) < 0.8),
            "next_observation": torch.randn(*rows, FEATURES, generator=generator),
        } | replaced
        weight = torch.rand(rows, generator=generator) + 0.1
        return ReplayBatch(Transition(**fields), torch.zeros(rows, dtype=torch.int64), weight)

    return Batches([batch() for _ in range(count)])


def make_model(**kwargs):
    """A small network whose target is not its copy, as some updates later."""
    torch.manual_seed(0)
    defaults = {"torso": partial(MLPTorso, hidden_sizes=(8,)), "optimizer": partial(torch.optim.Adam, lr=1e-2)}
    model = DQNLightningModule([FEATURES], ACTIONS, **(defaults | kwargs))
    with torch.no_grad():
        for parameter in model.target.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return model


def make_trainer(**kwargs):
    quiet = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": 1,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    return Trainer(**(quiet | kwargs))


def fit(model, batches, ckpt_path=None, **kwargs):
    trainer = make_trainer(**kwargs)
    trainer.fit(model, batches, ckpt_path=ckpt_path)
    return trainer


def plain_copy(network):
    """The network as plain torch layers, with the same weights."""
    layers = nn.Sequential(nn.Linear(FEATURES, 8), nn.ReLU(), nn.Linear(8, ACTIONS))
    with torch.no_grad():
        for copied, parameter in zip(layers.parameters(), network.parameters(), strict=True):
            copied.copy_(parameter)
    return layers


class HandLoop:
    """Double or plain Q-learning in a few lines of torch, as a textbook writes it."""

    def __init__(self, model, optimizer, double=True, error=F.huber_loss, period=1, rate=0.005, clip=None, bf16=False):
        self.online, self.target = plain_copy(model.online), plain_copy(model.target)
        self.optimizer = optimizer(self.online.parameters())
        self.double, self.error, self.period, self.rate, self.clip, self.bf16 = double, error, period, rate, clip, bf16
        self.steps = 0
        self.norms = []

    def loss(self, observation, action, reward, discount, following, mask, next_mask, weight):
        rows = torch.arange(len(action))
        illegal = 0 if next_mask is None else torch.where(next_mask, 0.0, -torch.inf)
        with torch.autocast("cpu", torch.bfloat16, enabled=self.bf16, cache_enabled=False):
            q = self.online(observation).float()[rows, action]
            with torch.no_grad():
                if self.double:
                    greedy = (self.online(following).float() + illegal).argmax(1)
                    value = self.target(following).float()[rows, greedy]
                else:
                    value = (self.target(following).float() + illegal).max(1).values
                goal = reward + discount * value
            return (weight * self.error(q, goal, reduction="none")).mean(), (goal - q).abs(), q

    def learn(self, batch):
        """One iteration: K updates; the means of loss, TD error and Q-value over them."""
        records = []
        for k in range(len(batch.index)):
            minibatch = [*batch.transition.map(lambda field, k=k: field[k]), batch.weight[k]]

            def closure(minibatch=minibatch):
                loss, self.td_error, self.q = self.loss(*minibatch)
                self.last_loss = loss.detach()
                self.optimizer.zero_grad()
                loss.backward()
                if self.clip is not None:
                    self.norms.append(self.clip(self.online.parameters()))
                return loss

            self.optimizer.step(closure)
            records.append([self.last_loss, self.td_error.detach().mean(), self.q.detach().mean()])
            self.steps += 1
            if self.steps % self.period == 0:
                with torch.no_grad():
                    for stale, fresh in zip(self.target.parameters(), self.online.parameters(), strict=True):
                        stale.copy_(fresh) if self.rate == 1 else stale.lerp_(fresh, self.rate)
        return torch.tensor(records).mean(0).tolist()

    def fit(self, batches):
        return [self.learn(batch) for batch in batches]


def weights(network):
    return [parameter.detach().clone() for parameter in network.parameters()]


def identical(one, other):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), other.parameters(), strict=True))


# updates, against loops written by hand

CLIPPING = {
    "unclipped": ({}, None),
    "by-norm": ({"gradient_clip_val": 0.1}, partial(nn.utils.clip_grad_norm_, max_norm=0.1)),
    "by-value": (
        {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
        partial(nn.utils.clip_grad_value_, clip_value=0.01),
    ),
}


@pytest.mark.parametrize("num_updates", [1, 4, 8])
@pytest.mark.parametrize("clipping", CLIPPING)
def test_weights_are_exactly_those_of_a_loop_written_by_hand(num_updates, clipping):
    settings, clip = CLIPPING[clipping]
    batches = make_batches(6, num_updates)
    model = make_model(target_update_period=3, target_update_rate=0.5)
    before = weights(model.online)
    by_hand = HandLoop(model, partial(torch.optim.Adam, lr=1e-2), period=3, rate=0.5, clip=clip)

    by_hand.fit(batches)
    fit(model, batches, **settings)

    assert not any(torch.equal(old, new) for old, new in zip(before, model.online.parameters(), strict=True))
    assert identical(model.online, by_hand.online)
    assert identical(model.target, by_hand.target)
    assert model.gradient_steps == 6 * num_updates
    if clipping == "by-norm":
        assert max(by_hand.norms) > 0.1  # or nothing would have been tested


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize(("period", "rate"), [(1, 0.005), (5, 1), (2, 1.0), (7, 0.25)])
@pytest.mark.parametrize(("error", "reference"), [(huber_error, F.huber_loss), (squared_error, F.mse_loss)])
def test_every_rule_loss_and_target_update_equals_the_loop_written_by_hand(double, period, rate, error, reference):
    batches = make_batches(5, 4)
    optimizer = partial(torch.optim.SGD, lr=0.02, momentum=0.9)
    model = make_model(
        head=partial(ExpectedHead, loss=error),
        target_rule=DoubleQLearning() if double else QLearning(),
        optimizer=optimizer,
        target_update_period=period,
        target_update_rate=rate,
    )
    by_hand = HandLoop(model, optimizer, double, reference, period, rate)

    by_hand.fit(batches)
    fit(model, batches)

    assert identical(model.online, by_hand.online)
    assert identical(model.target, by_hand.target)


@pytest.mark.parametrize("rule", [DoubleQLearning(), QLearning()])
def test_with_masks_the_weights_are_those_of_a_loop_that_never_looks_at_illegal_next_actions(rule):
    generator = torch.Generator().manual_seed(5)
    shape = (6, 4, BATCH_SIZE, ACTIONS)
    # about half of all actions are legal, and always one
    masks = torch.rand(2, *shape, generator=generator) < 0.3
    masks |= torch.rand(2, *shape, generator=generator).argsort(-1) == 0
    batches = make_batches(6, 4)
    masked = Batches(
        [
            batch._replace(transition=batch.transition._replace(action_mask=present, next_action_mask=following))
            for batch, present, following in zip(batches, *masks, strict=True)
        ]
    )
    optimizer = partial(torch.optim.Adam, lr=1e-2)
    model, unmasked = (make_model(target_rule=rule, optimizer=optimizer, target_update_rate=0.5) for _ in range(2))
    by_hand = HandLoop(model, optimizer, isinstance(rule, DoubleQLearning), rate=0.5)

    by_hand.fit(masked)
    fit(model, masked)
    fit(unmasked, batches)

    assert identical(model.online, by_hand.online)
    assert identical(model.target, by_hand.target)
    assert not identical(model.online, unmasked.online)


def test_double_q_learning_and_q_learning_differ():
    # the two tests above would mean little if both rules gave the same weights
    batches = make_batches(5, 4)
    double, plain = make_model(target_rule=DoubleQLearning()), make_model(target_rule=QLearning())

    fit(double, batches)
    fit(plain, batches)

    assert not identical(double.online, plain.online)


def test_an_optimizer_that_runs_the_closure_several_times_equals_the_loop_written_by_hand(tmp_path):
    batches = make_batches(3, 2)
    optimizer = partial(torch.optim.LBFGS, lr=0.1, max_iter=4)
    model = make_model(optimizer=optimizer, target_update_period=3, target_update_rate=1)
    by_hand = HandLoop(model, optimizer, period=3, rate=1)
    outputs = []

    by_hand.fit(batches)
    fit(model, batches, callbacks=[Outputs(outputs)])

    assert identical(model.online, by_hand.online)
    assert identical(model.target, by_hand.target)
    assert model.gradient_steps == 6
    assert [len(output["td_error"]) for output in outputs] == [2, 2, 2]


class Outputs(Callback):
    """Keeps what the training step returned."""

    def __init__(self, outputs):
        self.outputs = outputs

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.outputs.append({name: list(v) if isinstance(v, list) else v for name, v in outputs.items()})


def test_td_errors_of_all_updates_reach_the_callbacks():
    batches = make_batches(3, 4)
    model = make_model()
    by_hand = HandLoop(model, partial(torch.optim.Adam, lr=1e-2))
    outputs = []
    expected = []
    original = by_hand.loss

    def recorded(*minibatch):
        result = original(*minibatch)
        expected.append(result[1].detach())
        return result

    by_hand.loss = recorded
    by_hand.fit(batches)
    fit(model, batches, callbacks=[Outputs(outputs)])

    td_errors = [td_error for output in outputs for td_error in output["td_error"]]
    assert [len(output["td_error"]) for output in outputs] == [4, 4, 4]
    assert all(torch.equal(one, other) for one, other in zip(td_errors, expected, strict=True))
    assert not any(td_error.requires_grad for td_error in td_errors)


def test_several_epochs_go_on_with_the_same_optimizer():
    batches = make_batches(3, 2)
    model = make_model(target_update_period=4, target_update_rate=1)
    by_hand = HandLoop(model, partial(torch.optim.Adam, lr=1e-2), period=4, rate=1)

    for _ in range(3):
        by_hand.fit(batches)
    fit(model, batches, max_epochs=3)

    assert identical(model.online, by_hand.online)
    assert identical(model.target, by_hand.target)


def test_the_number_of_updates_may_change_from_batch_to_batch():
    batches = Batches([*make_batches(1, 3), *make_batches(1, 1), *make_batches(1, 5)])
    model = make_model(target_update_period=2, target_update_rate=1)
    by_hand = HandLoop(model, partial(torch.optim.Adam, lr=1e-2), period=2, rate=1)

    by_hand.fit(batches)
    fit(model, batches)

    assert identical(model.online, by_hand.online)
    assert identical(model.target, by_hand.target)
    assert model.gradient_steps == 9


def test_global_step_counts_iterations():
    trainer = fit(make_model(), make_batches(5, 4))

    assert trainer.global_step == 5


# the target network


class TargetWatch(Callback):
    """Notes after which gradient steps the weights of the target network were others than before."""

    def __init__(self):
        self.moves = []
        self.steps = 0
        self.seen = None

    def look(self, model):
        now = weights(model.target)
        if self.seen is not None and not all(torch.equal(a, b) for a, b in zip(now, self.seen, strict=True)):
            self.moves.append(self.steps)
        self.seen = now

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.look(pl_module)
        self.steps += 1

    def on_train_end(self, trainer, pl_module):
        self.look(pl_module)


@pytest.mark.parametrize("rate", [1, 0.25])
@pytest.mark.parametrize("period", [1, 2, 3, 5, 8, 25])
@pytest.mark.parametrize("num_updates", [1, 3, 8])
def test_the_target_moves_exactly_every_so_many_gradient_steps(rate, period, num_updates):
    watch = TargetWatch()
    model = make_model(target_update_period=period, target_update_rate=rate)

    fit(model, make_batches(24 // num_updates, num_updates), callbacks=[watch])

    assert watch.steps == 24
    assert watch.moves == [step for step in range(1, 25) if step % period == 0]


def fill(network, value):
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.fill_(value)


def values(network):
    return {value for parameter in network.parameters() for value in parameter.flatten().tolist()}


def test_a_small_rate_averages():
    model = make_model(target_update_rate=0.25)
    fill(model.online, 2.0)
    fill(model.target, 0.0)

    model.update_target()
    assert values(model.target) == {0.5}  # 0 + 0.25 * (2 - 0)
    model.update_target()
    assert values(model.target) == {0.875}  # 0.5 + 0.25 * (2 - 0.5)
    assert values(model.online) == {2.0}


@pytest.mark.parametrize("rate", [1, 1.0])
def test_a_rate_of_one_copies_exactly(rate):
    model = make_model(target_update_rate=rate)
    fill(model.online, 0.1)
    # 1e8 + (0.1 - 1e8) is not 0.1 in float32, and nothing added to infinity brings it back
    for stale in (1e8, math.inf):
        fill(model.target, stale)

        model.update_target()

        assert identical(model.target, model.online)


class NormalisedTorso(Torso):
    """A torso with statistics that are no parameters."""

    def __init__(self, observation_shape):
        super().__init__()
        self.num_features = 6
        self.layers = nn.Sequential(nn.Linear(observation_shape[0], 6), nn.BatchNorm1d(6))

    def forward(self, observation):
        return self.layers(observation)


@pytest.mark.parametrize("rate", [1, 0.25])
def test_the_target_update_copies_buffers(rate):
    model = make_model(torso=NormalisedTorso, target_update_rate=rate)

    fit(model, make_batches(3, 2))

    online, target = dict(model.online.named_buffers()), dict(model.target.named_buffers())
    assert online["torso.layers.1.num_batches_tracked"] > 0
    assert all(torch.equal(online[name], target[name]) for name in online)
    assert identical(model.online, model.target) == (rate == 1)


def test_a_hard_copy_makes_the_whole_state_equal():
    model = make_model(torso=NormalisedTorso, target_update_rate=1)
    with torch.no_grad():
        for number, buffer in enumerate(model.online.buffers()):
            buffer.fill_(3 + number)

    model.update_target()

    online, target = model.online.state_dict(), model.target.state_dict()
    assert online.keys() == target.keys()
    assert all(torch.equal(online[name], target[name]) for name in online)


def test_the_target_update_reaches_buffers_that_a_conversion_replaced():
    model = make_model(torso=NormalisedTorso, target_update_rate=1)
    model.update_target()
    model.double().float()  # gives every buffer a new tensor, as moving to another device does
    with torch.no_grad():
        for buffer in model.online.buffers():
            buffer.fill_(5)

    model.update_target()

    assert all(torch.equal(a, b) for a, b in zip(model.online.buffers(), model.target.buffers(), strict=True))


def test_a_second_fit_after_a_conversion_still_moves_the_target():
    model = make_model(torso=NormalisedTorso, target_update_rate=1)
    fit(model, make_batches(2, 2))
    model.double().float()

    fit(model, make_batches(2, 2, seed=1))

    online, target = model.online.state_dict(), model.target.state_dict()
    assert all(torch.equal(online[name], target[name]) for name in online)


def test_a_new_target_network_is_a_copy_of_the_online_network():
    model = DQNLightningModule([FEATURES], ACTIONS)

    assert identical(model.online, model.target)


def test_online_and_target_share_no_memory():
    model = make_model(torso=NormalisedTorso)
    fit(model, make_batches(2, 2))

    online = {value.data_ptr() for value in model.online.state_dict().values()}
    target = {value.data_ptr() for value in model.target.state_dict().values()}

    assert online.isdisjoint(target)


def test_the_optimizer_holds_the_online_parameters_and_no_others():
    model = make_model()

    optimizer = model.configure_optimizers()

    held = [id(parameter) for group in optimizer.param_groups for parameter in group["params"]]
    assert held == [id(parameter) for parameter in model.online.parameters()]


def test_the_target_network_gets_no_gradients():
    model = make_model()

    fit(model, make_batches(2, 2))

    assert all(parameter.grad is None for parameter in model.target.parameters())
    assert not any(parameter.requires_grad for parameter in model.target.parameters())
    assert all(parameter.requires_grad for parameter in model.online.parameters())


def test_the_target_rule_runs_without_gradients():
    seen = []

    class Watched(TargetRule):
        def __call__(self, transition, online, target):
            seen.append((torch.is_grad_enabled(), online(transition.observation).q_values.requires_grad))
            return QLearning()(transition, online, target)

    with pytest.warns(UserWarning, match="target_rule is not saved"):
        model = make_model(target_rule=Watched())
    fit(model, make_batches(2, 2))

    # once when head and rule are tried on each other, then once for every gradient step
    assert seen == [(False, False)] * (1 + 4)


@pytest.mark.parametrize("period", [0, -3])
def test_an_impossible_period_is_refused(period):
    with pytest.raises(ValueError, match=r"^model\.target_update_period .*got " + str(period)):
        make_model(target_update_period=period)


@pytest.mark.parametrize("rate", [0, -0.1, 1.5, math.nan])
def test_an_impossible_rate_is_refused(rate):
    with pytest.raises(ValueError, match=r"^model\.target_update_rate .*\(0, 1\], got " + str(rate)):
        make_model(target_update_rate=rate)


# importance weights


def gradient_and_td_error(model, batch):
    """Of the first minibatch, without taking a step."""
    model.zero_grad()
    model.on_train_batch_start(batch, 0)
    output = model.training_step(batch, 0)
    output["loss"].backward()
    return [parameter.grad.clone() for parameter in model.online.parameters()], output["td_error"][0]


def with_weight(batch, weight):
    return batch._replace(weight=tensor([weight]))


def rows_of(batch, rows):
    transition = batch.transition.map(lambda field: field[:, rows])
    return ReplayBatch(transition, batch.index[:, rows], batch.weight[:, rows])


def test_the_gradient_is_the_weighted_mean_of_the_samples_gradients():
    model = make_model()
    (batch,) = make_batches(1, 1, batch_size=4)
    weight = [0.5, 0.0, 2.0, 1.0]

    gradient, _ = gradient_and_td_error(model, with_weight(batch, weight))

    expected = [torch.zeros_like(parameter) for parameter in model.online.parameters()]
    for i, w in enumerate(weight):
        alone, _ = gradient_and_td_error(model, with_weight(rows_of(batch, slice(i, i + 1)), [1.0]))
        expected = [total + w * part / 4 for total, part in zip(expected, alone, strict=True)]
    assert max(part.abs().max() for part in expected) > 0.01
    torch.testing.assert_close(gradient, expected, rtol=1e-5, atol=1e-7)


def test_a_sample_of_weight_zero_has_no_part_in_the_gradient():
    model = make_model()
    (batch,) = make_batches(1, 1, batch_size=4)
    reward = batch.transition.reward.clone()
    reward[0, 1] = 1e6
    other = batch._replace(transition=batch.transition._replace(reward=reward))

    for weight, same in [([1.0, 0.0, 1.0, 1.0], True), ([1.0, 0.5, 1.0, 1.0], False)]:
        gradients = [gradient_and_td_error(model, with_weight(b, weight))[0] for b in (batch, other)]
        assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True)) == same


def test_weights_of_zero_leave_no_gradient_at_all():
    (batch,) = make_batches(1, 1, batch_size=4)

    gradient, _ = gradient_and_td_error(make_model(), with_weight(batch, [0.0] * 4))

    assert all(part.count_nonzero() == 0 for part in gradient)


def test_td_errors_do_not_depend_on_the_weights():
    model = make_model()
    (batch,) = make_batches(1, 1, batch_size=4)

    _, plain = gradient_and_td_error(model, with_weight(batch, [1.0] * 4))
    _, weighted = gradient_and_td_error(model, with_weight(batch, [0.5, 0.0, 2.0, 100.0]))

    assert plain.shape == (4,)
    assert (plain > 0).all()
    assert torch.equal(plain, weighted)


# learning rate


@pytest.mark.parametrize("num_updates", [1, 4])
def test_the_learning_rate_changes_once_per_batch(num_updates):
    class Rates(Callback):
        seen = []

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])

    rates = Rates()
    model = make_model(optimizer=partial(torch.optim.SGD, lr=0.5), lr_scheduler=partial(StepLR, step_size=1, gamma=0.5))
    rates.seen.clear()

    fit(model, make_batches(3, num_updates), max_epochs=2, callbacks=[rates])

    assert rates.seen == [0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625]


# precision


class Recorded(TargetRule):
    """Q-learning that notes what dtypes it sees and gives."""

    def __init__(self):
        self.seen = []

    def __call__(self, transition, online, target):
        goal = QLearning()(transition, online, target)
        self.seen += [transition.reward, online(transition.observation).q_values, goal.q_values]
        return goal


def test_everything_after_the_head_is_float32_under_bf16_mixed():
    outputs, compared = [], []

    def error(prediction, target):
        compared.extend([prediction, target])
        return huber_error(prediction, target)

    with pytest.warns(UserWarning, match="head is not saved"):
        model = make_model(head=partial(ExpectedHead, loss=error), target_rule=Recorded())
    features = []
    model.online.torso.register_forward_hook(lambda module, inputs, output: features.append(output))

    fit(model, make_batches(2, 2), precision="bf16-mixed", callbacks=[Outputs(outputs)])

    assert {feature.dtype for feature in features} == {torch.bfloat16}
    assert {value.dtype for value in (*model.target_rule.seen, *compared)} == {torch.float32}
    assert {output["loss"].dtype for output in outputs} == {torch.float32}
    assert {error.dtype for output in outputs for error in output["td_error"]} == {torch.float32}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("clip", [None, 0.1])
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_fused_adam_clipping_and_mixed_precision_go_together(fused, clip, precision):
    batches = make_batches(4, 3)
    optimizer = partial(torch.optim.Adam, lr=1e-2, fused=fused)
    model = make_model(optimizer=optimizer, target_update_period=2, target_update_rate=0.5)
    by_hand = HandLoop(
        model,
        optimizer,
        period=2,
        rate=0.5,
        clip=None if clip is None else partial(nn.utils.clip_grad_norm_, max_norm=clip),
        bf16=precision == "bf16-mixed",
    )

    by_hand.fit(batches)
    fit(model, batches, precision=precision, gradient_clip_val=clip)

    assert identical(model.online, by_hand.online)
    assert identical(model.target, by_hand.target)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
@pytest.mark.parametrize("fused", [True, False])
def test_training_on_a_gpu(precision, fused):
    model = make_model(optimizer=partial(torch.optim.Adam, lr=1e-2, fused=fused), target_update_rate=1)
    before = weights(model.online)

    fit(model, make_batches(4, 3), accelerator="gpu", precision=precision, gradient_clip_val=0.1)

    assert model.gradient_steps == 12
    assert identical(model.online, model.target)
    assert not any(torch.equal(old, new.cpu()) for old, new in zip(before, model.online.parameters(), strict=True))
    assert all(parameter.isfinite().all() for parameter in model.online.parameters())


# settings that are refused


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"lr": -1.0}, r" \(lr\): Invalid learning rate: -1\.0"),
        ({"lr": math.inf}, r": lr must be finite, got inf"),
        ({"eps": -1.0}, r" \(eps\): Invalid epsilon value: -1\.0"),
        ({"eps": math.inf}, r": eps must be finite, got inf"),
        ({"betas": (0.9, 1.0)}, r" \(betas\): Invalid beta parameter at index 1: 1\.0"),
        ({"weight_decay": math.nan}, r": Invalid weight_decay value: nan"),
        ({"weight_decay": math.inf}, r": weight_decay must be finite, got inf"),
    ],
)
def test_what_no_optimizer_can_work_with_is_refused_by_name(arguments, said):
    with pytest.raises(ValueError, match=rf"^model\.optimizer{said}$"):
        make_model(optimizer=partial(torch.optim.Adam, **arguments)).configure_optimizers()


def test_a_network_that_cannot_be_made_is_refused_in_one_line():
    def torso(observation_shape):
        raise RuntimeError("can't allocate memory\nException raised from alloc")

    said = r"^model\.torso and model\.head: the network cannot be made\. Too large\? can't allocate memory$"
    with pytest.raises(ValueError, match=said):
        make_model(torso=torso)


@pytest.mark.parametrize("precision", ["bf16-true", "64-true"])
def test_precisions_without_float32_parameters_are_refused(precision):
    with pytest.raises(ValueError, match=r"^trainer\.precision: " + precision):
        fit(make_model(), make_batches(1, 1), precision=precision)


def test_half_precision_parameters_are_refused(monkeypatch):
    trainer, model = make_trainer(), make_model()
    monkeypatch.setattr(Trainer, "precision", "16-true")  # the Trainer itself only allows it on a GPU
    trainer.strategy.connect(model)
    model.trainer = trainer

    with pytest.raises(ValueError, match=r"^trainer\.precision: 16-true"):
        model.setup("fit")


def test_gradient_accumulation_is_refused():
    with pytest.raises(ValueError, match=r"^trainer\.accumulate_grad_batches must be 1.*data\.batch_size"):
        fit(make_model(), make_batches(2, 1), accumulate_grad_batches=2)


def test_scheduled_gradient_accumulation_is_refused():
    with pytest.raises(ValueError, match="accumulat"):
        fit(make_model(), make_batches(4, 2), max_epochs=3, callbacks=[GradientAccumulationScheduler({1: 2})])


def test_a_gradient_accumulation_schedule_of_ones_is_harmless():
    batches = make_batches(2, 2)
    with_schedule, without = make_model(), make_model()

    fit(with_schedule, batches, max_epochs=2, callbacks=[GradientAccumulationScheduler({1: 1})])
    fit(without, batches, max_epochs=2)

    assert identical(with_schedule.online, without.online)


def test_sharded_strategies_are_refused(monkeypatch):
    trainer, model = make_trainer(), make_model()
    monkeypatch.setattr(trainer._accelerator_connector, "strategy", FSDPStrategy())
    model.trainer = trainer

    with pytest.raises(ValueError, match=r"^trainer\.strategy: FSDPStrategy is not supported.*ddp"):
        model.setup("fit")


def test_ddp_is_not_refused(monkeypatch):
    trainer, model = make_trainer(), make_model()
    monkeypatch.setattr(trainer._accelerator_connector, "strategy", DDPStrategy())
    model.trainer = trainer

    model.setup("fit")


@pytest.mark.parametrize("stage", ["validate", "test", "predict"])
def test_settings_of_training_do_not_matter_elsewhere(stage):
    model = make_model()
    model.trainer = make_trainer(accumulate_grad_batches=2)

    model.setup(stage)


# acting


def make_table():
    """A model whose Q-values are a table: states in rows, actions in columns."""
    model = make_model(torso=partial(MLPTorso, hidden_sizes=()))
    with torch.no_grad():
        for network, sign in [(model.online, 1), (model.target, -1)]:
            layer = next(module for module in network.modules() if isinstance(module, nn.Linear))
            layer.bias.zero_()
            table = [[1.0, 2.0, 3.0], [6.0, 5.0, 4.0], [7.0, 9.0, 8.0], [-3.0, -1.0, -2.0]]
            layer.weight.copy_(sign * tensor(table).T)
    return model


@pytest.mark.parametrize(
    "observation",
    [
        torch.eye(4),
        torch.eye(4, dtype=torch.int64),
        torch.eye(4, dtype=torch.bool),
        np.eye(4),
        np.eye(4, dtype=np.float32),
        np.eye(4, dtype=np.int8),
        np.eye(4, dtype=np.uint8),
    ],
    ids=lambda observation: f"{type(observation).__module__}-{observation.dtype}",
)
def test_act_is_greedy_for_tensors_and_arrays(observation):
    actions = make_table().act(observation)

    assert isinstance(actions, torch.Tensor)
    assert actions.dtype == torch.int64
    assert actions.tolist() == [2, 0, 1, 1]


def test_act_on_a_single_observation_keeps_the_batch_axis():
    assert make_table().act(np.eye(4)[2:3]).tolist() == [1]


LEGAL = [[True, True, False], [False, False, True], [True, False, True], [True, True, True]]


@pytest.mark.parametrize(
    "mask",
    [tensor(LEGAL), tensor(LEGAL, dtype=torch.int8), np.array(LEGAL), np.array(LEGAL, np.int8), np.array(LEGAL, float)],
    ids=lambda mask: f"{type(mask).__module__}-{mask.dtype}",
)
def test_act_takes_the_best_of_the_legal_actions(mask):
    model, before = make_table(), mask.copy() if isinstance(mask, np.ndarray) else mask.clone()

    actions = model.act(torch.eye(4), mask)

    assert actions.dtype == torch.int64
    assert actions.tolist() == [1, 2, 2, 1]
    assert model.act(np.eye(4)[2:3], mask[2:3]).tolist() == [2]
    assert (mask == before).all()
    # and nothing is remembered
    assert model.act(torch.eye(4)).tolist() == model.act(torch.eye(4), None).tolist() == [2, 0, 1, 1]


@pytest.mark.parametrize("mask", [None, LEGAL])
def test_act_needs_no_gradients(mask):
    seen = []
    model = make_table()
    model.online.register_forward_hook(lambda *_: seen.append(torch.is_grad_enabled()))

    model.act(torch.eye(4), mask)

    assert seen == [False]
    assert torch.is_grad_enabled()


def test_forward_gives_float32_q_values_with_gradients():
    model = make_table()

    q_values = model(torch.eye(4, dtype=torch.float64))

    assert q_values.dtype == torch.float32
    assert q_values.requires_grad
    assert q_values.tolist() == [[1, 2, 3], [6, 5, 4], [7, 9, 8], [-3, -1, -2]]


def test_forward_gives_float32_q_values_under_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        assert make_model()(torch.randn(2, FEATURES)).dtype == torch.float32


def test_acting_never_asks_the_target_network():
    model = make_table()
    asked = []
    model.target.register_forward_hook(lambda *_: asked.append(1))

    model.act(torch.eye(4))
    model(torch.eye(4))

    assert asked == []


# logging


def rows(folder):
    (path,) = folder.rglob("metrics.csv")
    with path.open() as file:
        return list(csv.DictReader(file))


def test_logged_are_the_means_over_the_updates_of_the_iteration(tmp_path):
    batches = make_batches(7, 3)
    model = make_model(target_update_period=2, target_update_rate=0.5)
    by_hand = HandLoop(model, partial(torch.optim.Adam, lr=1e-2), period=2, rate=0.5)

    expected = by_hand.fit(batches)
    fit(model, batches, logger=CSVLogger(tmp_path), log_every_n_steps=2)

    logged = rows(tmp_path)
    # after the 2nd, 4th and 6th iteration, and at no other
    assert [int(row["step"]) for row in logged] == [1, 3, 5]
    for row, (loss, td_error, q_value) in zip(logged, expected[1::2], strict=False):
        assert float(row["train/loss"]) == pytest.approx(loss, rel=1e-6)
        assert float(row["train/td_error"]) == pytest.approx(td_error, rel=1e-6)
        assert float(row["train/q_value"]) == pytest.approx(q_value, rel=1e-6, abs=1e-7)


def test_logged_are_the_last_runs_of_a_closure_that_ran_several_times(tmp_path):
    batches = make_batches(2, 2)
    optimizer = partial(torch.optim.LBFGS, lr=0.1, max_iter=4)
    model = make_model(optimizer=optimizer)

    expected = HandLoop(model, optimizer).fit(batches)
    fit(model, batches, logger=CSVLogger(tmp_path), log_every_n_steps=1)

    for row, means in zip(rows(tmp_path), expected, strict=True):
        logged = [float(row[f"train/{name}"]) for name in ("loss", "td_error", "q_value")]
        assert logged == pytest.approx(means, rel=1e-6, abs=1e-7)


def test_log_is_called_for_rows_and_at_the_end_of_an_epoch_only():
    class Counter(DQNLightningModule):
        calls = 0

        def log(self, *args, **kwargs):
            type(self).calls += 1
            super().log(*args, **kwargs)

    Counter.calls = 0
    fit(Counter([FEATURES], ACTIONS), make_batches(10, 1), log_every_n_steps=5)

    assert Counter.calls == 2 * 3 + 4


def test_hyper_parameters_reach_the_logger(tmp_path):
    model = make_model(target_update_period=7)

    fit(model, make_batches(1, 1), logger=CSVLogger(tmp_path))

    (path,) = tmp_path.rglob("hparams.yaml")
    assert "target_update_period: 7" in path.read_text()


# other people's callbacks


def test_learning_rate_monitor(tmp_path):
    model = make_model(optimizer=partial(torch.optim.SGD, lr=0.5), lr_scheduler=partial(StepLR, step_size=1, gamma=0.5))

    fit(
        model,
        make_batches(3, 2),
        logger=CSVLogger(tmp_path),
        log_every_n_steps=1,
        callbacks=[LearningRateMonitor("step")],
    )

    assert [float(row["lr-SGD"]) for row in rows(tmp_path) if row["lr-SGD"]] == [0.5, 0.25, 0.125]


@pytest.mark.parametrize("log_every", [1, 50])
def test_early_stopping_on_the_loss(log_every):
    stop_at_once = EarlyStopping("train/loss", patience=1, min_delta=1e9)

    trainer = fit(
        make_model(), make_batches(3, 2), max_epochs=50, log_every_n_steps=log_every, callbacks=[stop_at_once]
    )

    assert trainer.current_epoch == 2  # the second epoch cannot be better by a billion
    assert stop_at_once.stopped_epoch == 1


def test_metrics_at_the_end_of_an_epoch_are_the_means_of_its_last_iteration():
    batches = make_batches(3, 2)
    model = make_model()

    expected = HandLoop(model, partial(torch.optim.Adam, lr=1e-2)).fit(batches)
    trainer = fit(model, batches, log_every_n_steps=2)

    found = [trainer.callback_metrics[f"train/{name}"].item() for name in ("loss", "td_error", "q_value")]
    assert found == pytest.approx(expected[-1], rel=1e-6, abs=1e-7)
    assert trainer.callback_metrics["train/skipped_updates"] == 0


def test_checkpoint_on_the_loss_when_every_update_was_skipped_does_not_stop_the_run(tmp_path):
    batches = make_batches(3, 1, reward=torch.full((1, BATCH_SIZE), torch.nan))
    best = ModelCheckpoint(tmp_path, monitor="train/loss")

    trainer = fit(make_model(), batches, enable_checkpointing=True, callbacks=[best])

    assert trainer.callback_metrics["train/skipped_updates"] == 3
    assert best.best_model_score == torch.inf  # the worst score there is: a finite loss replaces it


def test_averaged_weights():
    batches = make_batches(4, 2)
    raw, averaged, copied = make_model(), make_model(), make_model()

    fit(raw, batches)
    fit(averaged, batches, callbacks=[EMAWeightAveraging(decay=0.5)])
    fit(copied, batches, callbacks=[EMAWeightAveraging(decay=0.0)])

    assert identical(raw.online, copied.online)  # an average of the last weights alone: training was not disturbed
    assert not identical(raw.online, averaged.online)
    assert not identical(averaged.online, make_model().online)


def test_a_run_has_exactly_one_collector():
    given = ExperienceCollector()

    for callbacks in ([], [given]):
        trainer = fit(make_model(), make_batches(1, 1), callbacks=list(callbacks))
        collectors = [callback for callback in trainer.callbacks if isinstance(callback, ExperienceCollector)]
        assert len(collectors) == 1
        assert collectors == callbacks or callbacks == []


def test_a_fast_development_run():
    model = make_model()

    fit(model, make_batches(5, 2), fast_dev_run=True)

    assert model.gradient_steps == 2


# evaluation


class Played:
    """Episodes that were played already; notes what the policy says."""

    def __init__(self, seeds, returns, lengths):
        self.result = PlayedEpisodes(np.array(seeds), np.array(returns), np.array(lengths))
        self.actions = []

    def play(self, policy):
        self.actions.append(policy(np.eye(4, dtype=np.float32), None))
        return self.result


def episodes():
    return [Played([11, 12, 13], [0.0, 1.0, 3.0], [10, 20, 30]), Played([14], [100.0], [60])]


@pytest.mark.parametrize(("stage", "run"), [("val", "validate"), ("test", "test")])
def test_episodes_of_all_batches_count_the_same(stage, run):
    batches = episodes()

    (logged,) = getattr(make_trainer(), run)(make_table(), Batches(batches), verbose=False)

    assert logged == {f"{stage}/return": 26.0, f"{stage}/return_iqm": 2.0, f"{stage}/episode_length": 30.0}
    assert all(actions.tolist() == [2, 0, 1, 1] for batch in batches for actions in batch.actions)
    assert all(isinstance(actions, np.ndarray) for batch in batches for actions in batch.actions)


@pytest.mark.parametrize(("stage", "run"), [("val", "validate"), ("test", "test")])
def test_the_next_evaluation_does_not_remember_the_last(stage, run):
    model, evaluate = make_table(), getattr(make_trainer(), run)
    evaluate(model, Batches(episodes()), verbose=False)

    (logged,) = evaluate(model, Batches([Played([15, 16], [-1.0, -3.0], [2, 4])]), verbose=False)

    assert logged == {f"{stage}/return": -2.0, f"{stage}/return_iqm": -2.0, f"{stage}/episode_length": 3.0}


class BrokenOff(Played):
    """Episodes that an error ends."""

    def play(self, policy):
        raise RuntimeError("cable")


@pytest.mark.parametrize(("stage", "run"), [("val", "validate"), ("test", "test")])
def test_an_evaluation_that_was_broken_off_is_not_counted_in_the_next(stage, run):
    model, evaluate = make_table(), getattr(make_trainer(), run)
    with pytest.raises(RuntimeError, match="cable"):
        evaluate(model, Batches([*episodes(), BrokenOff([1], [1.0], [1])]), verbose=False)

    (logged,) = evaluate(model, Batches([Played([15, 16], [-1.0, -3.0], [2, 4])]), verbose=False)

    assert logged == {f"{stage}/return": -2.0, f"{stage}/return_iqm": -2.0, f"{stage}/episode_length": 3.0}


def test_predict_gives_every_episode():
    predicted = make_trainer().predict(make_table(), Batches(episodes()))

    assert predicted == [
        [
            {"seed": 11, "return": 0.0, "length": 10},
            {"seed": 12, "return": 1.0, "length": 20},
            {"seed": 13, "return": 3.0, "length": 30},
        ],
        [{"seed": 14, "return": 100.0, "length": 60}],
    ]


def test_validation_does_not_disturb_training():
    batches = make_batches(4, 2)
    alone, validated = make_model(), make_model()

    fit(alone, batches, max_epochs=2)
    trainer = make_trainer(max_epochs=2)
    trainer.fit(validated, batches, Batches(episodes()))

    assert identical(alone.online, validated.online)
    assert identical(alone.target, validated.target)
    assert trainer.callback_metrics["val/return"] == 26.0


# checkpoints


@pytest.mark.filterwarnings("ignore:.*has no replay with it.*")
@pytest.mark.parametrize("num_updates", [1, 3])
def test_a_resumed_run_is_the_uninterrupted_one(num_updates, tmp_path):
    batches = make_batches(4, num_updates)
    kwargs = {
        "target_update_period": 5,  # falls across the interruption after 4 or 12 gradient steps
        "target_update_rate": 1,
        "lr_scheduler": partial(LinearLR, start_factor=1.0, end_factor=0.1, total_iters=8),
    }
    whole, first, second = (make_model(**kwargs) for _ in range(3))
    fill(second, 0.0)
    path = tmp_path / "x.ckpt"

    fit(whole, batches, max_epochs=2)
    fit(first, batches, max_epochs=1).save_checkpoint(path)
    watch = TargetWatch()
    fit(second, batches, ckpt_path=path, max_epochs=2, callbacks=[watch])

    done = 4 * num_updates
    assert torch.load(path, weights_only=True)["gradient_steps"] == done
    assert second.gradient_steps == whole.gradient_steps == 2 * done
    assert [done + step for step in watch.moves] == [s for s in range(done + 1, 2 * done + 1) if s % 5 == 0]
    assert identical(second.online, whole.online)
    assert identical(second.target, whole.target)


@pytest.mark.parametrize(
    ("shape", "actions", "name"), [([5], ACTIONS, "observation_shape"), ([FEATURES], 2, "num_actions")]
)
def test_a_checkpoint_of_another_environment_is_refused(shape, actions, name, tmp_path):
    path = tmp_path / "x.ckpt"
    fit(make_model(), make_batches(1, 1)).save_checkpoint(path)
    other = DQNLightningModule(shape, actions)

    with pytest.raises(ValueError, match=rf"^ckpt_path: .*{name}"):
        fit(other, make_batches(1, 1), ckpt_path=path, max_epochs=2)


def test_a_trained_model_acts_the_same_after_loading(tmp_path):
    path = tmp_path / "x.ckpt"
    model = make_model()
    fit(model, make_batches(3, 2)).save_checkpoint(path)
    observation = torch.randn(20, FEATURES)

    loaded = DQNLightningModule.load_from_checkpoint(path, weights_only=True)

    assert torch.equal(loaded(observation), model(observation))
    assert torch.equal(loaded.target(observation).q_values, model.target(observation).q_values)
    assert torch.equal(loaded.act(observation), model.act(observation))
    assert loaded.gradient_steps == 6


# images, and a head of one's own


def test_uint8_images_reach_the_network_as_they_are():
    seen = []

    class Mean(Torso):
        def __init__(self, observation_shape):
            super().__init__()
            self.num_features = 1
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, observation):
            seen.append(observation.dtype)
            return self.scale * observation.float().mean(dim=(1, 2, 3)).unsqueeze(1) / 255

    images = torch.randint(256, (2, BATCH_SIZE, 3, 6, 6), dtype=torch.uint8)
    batches = make_batches(2, 2, observation=images, next_observation=images)
    with pytest.warns(UserWarning, match="torso is not saved"):
        model = DQNLightningModule([3, 6, 6], ACTIONS, torso=Mean)
    seen.clear()  # of what it was tried on

    fit(model, batches)

    assert set(seen) == {torch.uint8}


def test_a_head_of_ones_own_trains():
    class Doubled(ExpectedHead):
        def forward(self, features):
            returns = super().forward(features)
            return ExpectedReturn(2 * returns.values, returns.error)

    with pytest.warns(UserWarning, match="head is not saved"):
        model = make_model(head=Doubled)
    before = weights(model.online)

    fit(model, make_batches(2, 2))

    assert not any(torch.equal(old, new) for old, new in zip(before, model.online.parameters(), strict=True))


# the whole library, against the truth


def frozen_lake(desc, gamma):
    """Action values of the lake without a time limit by value iteration, and the states one can act in."""
    table = gym.make("FrozenLake-v1", desc=desc, is_slippery=False).unwrapped.P
    q = np.zeros((len(table), 4))
    for _ in range(200):
        for state, actions in table.items():
            for action, outcomes in actions.items():
                q[state, action] = sum(
                    probability * (reward + gamma * (not terminated) * q[following].max())
                    for probability, following, reward, terminated in outcomes
                )
    reachable, found = {0}, [0]
    while found:
        for outcomes in table[found.pop()].values():
            for _, following, _, terminated in outcomes:
                if not terminated and following not in reachable:
                    reachable.add(following)
                    found.append(following)
    return q, sorted(reachable)


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.slow) for seed in (1, 2))])
@pytest.mark.parametrize(
    ("desc", "max_episode_steps", "states"),
    [
        (["SFFF", "FHFH", "FFFH", "HFFG"], 100, 11),  # the lake as it is registered
        (["SFF", "FHF", "FFG"], 5, 7),  # most walks are cut off: taken for terminal, values would be too low
    ],
)
def test_a_linear_network_learns_the_true_action_values(desc, max_episode_steps, states, seed):
    iterations, num_envs, gamma = 300, 32, 0.9
    truth, reachable = frozen_lake(desc, gamma)
    torch.manual_seed(seed)
    data = ExperienceDataModule(
        "FrozenLake-v1",
        num_envs=num_envs,
        env_kwargs={"desc": desc, "is_slippery": False, "max_episode_steps": max_episode_steps},
        gamma=gamma,
        batch_size=64,
        train_frequency=num_envs,
        gradient_steps=8,
        learning_starts=250 * num_envs,
        steps_per_epoch=iterations * num_envs,
        seed=seed,
    )
    model = DQNLightningModule(
        data.observation_shape,
        data.num_actions,
        torso=partial(MLPTorso, hidden_sizes=()),
        optimizer=partial(torch.optim.Adam, lr=0.02),
        lr_scheduler=partial(LinearLR, start_factor=1.0, end_factor=0.01, total_iters=iterations),
        target_update_period=20,
        target_update_rate=1,
    )
    uniform = ExperienceCollector(EpsilonGreedy(LinearSchedule(1.0, 1.0, 1)))

    make_trainer(callbacks=[uniform], limit_val_batches=0).fit(model, datamodule=data)

    learned = model(torch.eye(len(truth))).detach().numpy()
    assert len(reachable) == states
    assert truth[reachable].max() == 1.0
    assert np.abs(learned - truth)[reachable].max() <= 1e-3


@pytest.mark.parametrize("kind", [torch.optim.lr_scheduler.ReduceLROnPlateau, None], ids=["torch", "lightning"])
def test_a_plateau_scheduler_steps_on_the_validation_return(tmp_path, kind):
    from lightning.pytorch.cli import ReduceLROnPlateau

    from lightning_dqn import ExperienceDataModule

    scheduler = partial(kind) if kind else partial(ReduceLROnPlateau, monitor="val/return")
    data = ExperienceDataModule("CartPole-v1", learning_starts=64, steps_per_epoch=32, eval_episodes=2, seed=0)
    model = DQNLightningModule(
        data.observation_shape, data.num_actions, lr_scheduler=partial(scheduler, mode="max", patience=0, threshold=1e9)
    )
    trainer = Trainer(
        accelerator="cpu", max_epochs=4, logger=False, enable_checkpointing=False, enable_progress_bar=False
    )
    trainer.fit(model, datamodule=data)
    assert trainer.optimizers[0].param_groups[0]["lr"] < 1e-3


def test_deepspeed_is_refused():
    from lightning.pytorch.strategies import DeepSpeedStrategy

    model = DQNLightningModule([3], 2)
    strategy = DeepSpeedStrategy.__new__(DeepSpeedStrategy)
    model._trainer = SimpleNamespace(accumulate_grad_batches=1, callbacks=[], strategy=strategy, precision="32-true")
    with pytest.raises(ValueError, match=r"trainer\.strategy: DeepSpeedStrategy is not supported"):
        model.setup("fit")


# -- losses that are not finite ----------------------------------------------------------------------------------------


class Poisoned(ReplayBuffer):
    """From some draw on, some updates of each batch have a reward that is not a number."""

    def __init__(self, first, updates):
        super().__init__(1000)
        self.first, self.updates, self.draws, self.priorities = first, updates, 0, []

    def sample(self, num_updates, batch_size, rng, env_steps=0):
        batch = super().sample(num_updates, batch_size, rng, env_steps)
        self.draws += 1
        if self.draws > self.first:
            batch.transition.reward[self.updates, 0] = torch.nan
        return batch

    def update_priorities(self, index, td_error):
        assert torch.isfinite(td_error).all()
        self.priorities.append(tuple(td_error.shape))


def poisoned_data(buffer):
    from lightning_dqn import ExperienceDataModule

    return ExperienceDataModule(
        "CartPole-v1",
        num_envs=2,
        buffer=buffer,
        batch_size=4,
        train_frequency=8,
        gradient_steps=3,
        learning_starts=20,
        steps_per_epoch=80,
        seed=0,
    )


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, partial(torch.optim.Adam, fused=True), torch.optim.SGD])
@pytest.mark.parametrize("clip", [None, 1.0])
@pytest.mark.parametrize("updates", [[0], [2], [0, 1, 2]])
def test_an_update_whose_loss_is_not_finite_is_left_out_and_counted(make_trainer, make_model, optimizer, clip, updates):
    data = poisoned_data(Poisoned(5, updates))
    model = make_model(data, optimizer=optimizer, max_skipped_updates=100)
    moved = []

    class Watch(Callback):
        def on_train_batch_start(self, *args):
            self.before = [parameter.clone() for parameter in model.online.parameters()]

        def on_train_batch_end(self, *args):
            after = list(model.online.parameters())
            assert all(torch.isfinite(parameter).all() for parameter in after)
            pairs = zip(self.before, after, strict=True)
            moved.append(any(not torch.equal(one, other) for one, other in pairs))

    make_trainer(callbacks=[Watch()], limit_val_batches=0, gradient_clip_val=clip).fit(model, data)
    assert (model.skipped_updates, model.gradient_steps) == (5 * len(updates), 30)
    assert moved == [True] * 5 + [len(updates) < 3] * 5
    assert data.buffer.priorities == [(3, 4)] * 5 + [(3 - len(updates), 4)] * (5 if len(updates) < 3 else 0)


def test_after_too_many_in_a_row_a_run_stops_with_its_last_good_weights(make_trainer, make_model):
    data = poisoned_data(Poisoned(2, [0, 1, 2]))
    model = make_model(data, max_skipped_updates=4)
    with pytest.raises(FloatingPointError, match=r"^model: .* 4 updates in a row.*model\.max_skipped_updates"):
        make_trainer(limit_val_batches=0).fit(model, data)
    assert (model.skipped_updates, model.gradient_steps) == (4, 6 + 3)
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())


def test_a_good_update_in_between_starts_the_count_anew(make_trainer, make_model, tmp_path):
    data = poisoned_data(Poisoned(0, [0, 2]))
    model = make_model(data, max_skipped_updates=3)
    logger = CSVLogger(tmp_path)
    make_trainer(limit_val_batches=0, logger=logger, log_every_n_steps=1).fit(model, data)
    assert model.skipped_updates == 20
    assert logger.experiment.metrics_keys.count("train/skipped_updates") == 1


def poisoned_batches(*finite):
    """Batches of one update each, whose loss is finite or not."""
    rewards = [torch.full((1, BATCH_SIZE), 1.0 if is_finite else torch.nan) for is_finite in finite]
    return Batches([next(iter(make_batches(1, 1, reward=reward))) for reward in rewards])


@pytest.mark.filterwarnings("ignore:.*has no replay with it.*")
def test_a_resumed_run_goes_on_counting(tmp_path):
    def run(name, **kwargs):
        model = make_model()
        trainer = fit(model, batches, logger=CSVLogger(tmp_path / name), log_every_n_steps=1, **kwargs)
        return model, trainer, [row["train/skipped_updates"] for row in rows(tmp_path / name)]

    batches, path = poisoned_batches(False, True, False, False), tmp_path / "x.ckpt"
    whole, _, expected = run("whole", max_epochs=2)
    _, first, _ = run("first")
    first.save_checkpoint(path)
    second, _, logged = run("second", max_epochs=2, ckpt_path=path)

    assert logged == expected[4:] == ["4.0", "4.0", "5.0", "6.0"]
    assert second.skipped_updates == whole.skipped_updates == 6


@pytest.mark.filterwarnings("ignore:.*has no replay with it.*")
def test_a_resumed_run_stops_where_the_uninterrupted_one_does(tmp_path):
    batches, path = poisoned_batches(True, False, False), tmp_path / "x.ckpt"
    fit(make_model(max_skipped_updates=4), batches).save_checkpoint(path)
    model = make_model(max_skipped_updates=4)
    batches = poisoned_batches(False, False, True)

    with pytest.raises(FloatingPointError, match="4 updates in a row"):
        fit(model, batches, path, max_epochs=2)


@pytest.mark.filterwarnings("ignore:.*has no replay with it.*")
def test_a_checkpoint_from_before_these_were_counted_can_be_gone_on_from(tmp_path):
    batches, path = poisoned_batches(True, False, False), tmp_path / "x.ckpt"
    fit(make_model(), batches).save_checkpoint(path)
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["skipped_updates"]
    old = tmp_path / "old.ckpt"
    torch.save(checkpoint, old)
    model = make_model(max_skipped_updates=3)

    fit(model, batches, old, max_epochs=2)

    assert model.skipped_updates == 2


def test_the_next_fit_counts_anew():
    model = make_model(max_skipped_updates=3)
    with pytest.raises(FloatingPointError):
        fit(model, poisoned_batches(True, False, False, False))
    assert model.skipped_updates == 3

    fit(model, poisoned_batches(False, False, True, False))

    assert model.skipped_updates == 3

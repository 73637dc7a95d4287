"""Compiled updates: the results of those that are not compiled, or a warning that says why they are not.

Most tests run what was traced without compiling it, which takes seconds each; the last ones compile.
"""

import shutil
from functools import partial

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from torch import nn
from torch._inductor import compile_fx
from torch.optim.lr_scheduler import LinearLR
from torch.utils.data import IterableDataset

from lightning_dqn import (
    CategoricalHead,
    DoubleQLearning,
    DQNLightningModule,
    DuelingStream,
    ExpectedHead,
    ExperienceCollector,
    ExperienceDataModule,
    Greedy,
    ImpalaTorso,
    ImplicitQuantileHead,
    MinAtarTorso,
    MLPTorso,
    MunchausenQLearning,
    NoisyLinear,
    QLearning,
    QuantileHead,
    ReplayBatch,
    Transition,
)
from lightning_dqn.learner.compiled import CompiledForward
from lightning_dqn.learner.spectral import SpectralConv2d

K, BATCHES, ACTIONS = 3, 5, 2
SMALL = partial(MLPTorso, hidden_sizes=(8,))
# with torch's own epsilon a gradient that is all rounding error takes a step as long as any
ADAM = partial(torch.optim.Adam, lr=1e-2, eps=1e-5)
ADAMW = partial(torch.optim.AdamW, lr=1e-2, eps=1e-5, weight_decay=0.1)

pytestmark = [
    pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`"),
    pytest.mark.filterwarnings("ignore:The number of training batches"),
    pytest.mark.filterwarnings("ignore:.*is not supported by the model summary"),
]


class Batches(IterableDataset):
    """The same few batches each time, some rewards of which are not finite."""

    def __init__(self, shape=(4,), poisoned=(), masked=False, size=8):
        self.shape, self.poisoned, self.masked, self.size = shape, poisoned, masked, size

    def __len__(self):
        return BATCHES

    def __iter__(self):
        generator = torch.Generator().manual_seed(0)
        rows = (K, self.size)
        for number in range(BATCHES):
            observation, following = torch.randn(2, *rows, *self.shape, generator=generator)
            if len(self.shape) == 3:
                observation, following = ((100 * image.abs()).byte() for image in (observation, following))
            reward = torch.randn(rows, generator=generator)
            for update in (update for batch, update in self.poisoned if batch == number):
                reward[update, 0] = torch.inf
            action = torch.randint(ACTIONS, rows, generator=generator)
            masks = []
            if self.masked:
                masks = [torch.rand(*rows, ACTIONS, generator=generator) > 0.5 for _ in range(2)]
                masks = [mask.index_fill(-1, torch.tensor(0), True) for mask in masks]
            transition = Transition(observation, action, reward, torch.full(rows, 0.9), following, *masks)
            index = torch.arange(K * self.size).view(rows)
            yield ReplayBatch(transition, index, torch.rand(rows, generator=generator))


class Notes(Callback):
    """What every batch said."""

    def __init__(self):
        self.td_errors = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.td_errors.append(torch.stack(outputs["td_error"]))


def fit(make_trainer, compile_updates, data=None, callbacks=(), trainer=None, **model):
    torch.manual_seed(0)
    data = data or Batches()
    defaults = {"torso": SMALL, "optimizer": ADAM, "target_update_period": 2, "target_update_rate": 0.5}
    learner = DQNLightningModule(data.shape, ACTIONS, compile_updates=compile_updates, **(defaults | model))
    notes = Notes()
    runner = make_trainer(callbacks=[notes, *callbacks], **(trainer or {}))
    runner.fit(learner, train_dataloaders=data)
    return learner, torch.stack(notes.td_errors), runner.optimizers[0].state_dict()


def assert_same(make_trainer, tolerance=1e-5, **arguments):
    """Fits with and without compiling and compares weights, buffers, TD errors, optimizer and random numbers."""
    plain, td_errors, state = fit(make_trainer, False, **arguments)
    drawn = torch.rand(3)
    compiled, found, other = fit(make_trainer, True, **arguments)
    assert torch.equal(drawn, torch.rand(3))
    close = partial(torch.testing.assert_close, rtol=tolerance, atol=tolerance, equal_nan=True)
    close(dict(compiled.state_dict()), dict(plain.state_dict()))
    close(found, td_errors)
    close(other["state"], state["state"])
    for name in ("gradient_steps", "skipped_updates"):
        assert getattr(compiled, name) == getattr(plain, name)
    return plain, compiled


def noisy(head):
    return partial(head, stream=DuelingStream, layer=NoisyLinear)


@pytest.mark.parametrize("rule", [QLearning(), DoubleQLearning(), MunchausenQLearning()])
@pytest.mark.parametrize(
    "head", [ExpectedHead, QuantileHead, ImplicitQuantileHead, noisy(ExpectedHead), noisy(ImplicitQuantileHead)]
)
def test_every_head_and_rule_learns_the_same(make_trainer, compilations, head, rule):
    assert_same(make_trainer, head=head, target_rule=rule)
    assert len(compilations) == 1


def test_a_categorical_head_learns_the_same(make_trainer, compilations):
    assert_same(make_trainer, head=noisy(CategoricalHead), target_rule=DoubleQLearning())
    assert len(compilations) == 1


def test_action_masks_are_a_part_of_it(make_trainer, compilations):
    plain, _ = assert_same(make_trainer, data=Batches(masked=True), target_rule=DoubleQLearning())
    unmasked, *_ = fit(make_trainer, False, target_rule=DoubleQLearning())
    assert len(compilations) == 1
    assert not torch.equal(*(model.online.head.stream.layers[0].weight for model in (plain, unmasked)))


@pytest.mark.parametrize("optimizer", [ADAM, ADAMW, partial(torch.optim.Adam, lr=1e-2, eps=1e-5, fused=True)])
@pytest.mark.parametrize(
    "clipping",
    [
        {},
        {"gradient_clip_val": 0.05},
        {"gradient_clip_val": 1e6},
        {"gradient_clip_val": 1e-3, "gradient_clip_algorithm": "value"},
    ],
)
def test_optimizer_clipping_and_schedule_are_those_of_the_trainer(make_trainer, compilations, optimizer, clipping):
    schedule = partial(LinearLR, start_factor=1.0, end_factor=0.01, total_iters=4)
    assert_same(make_trainer, optimizer=optimizer, lr_scheduler=schedule, trainer=clipping)
    assert len(compilations) == 1


def test_bfloat16_learns_the_same(make_trainer, compilations):
    assert_same(make_trainer, trainer={"precision": "bf16-mixed"})
    assert len(compilations) == 1


class Normalized(MLPTorso):
    """A torso whose buffers change with every forward in training mode."""

    def __init__(self, observation_shape):
        super().__init__(observation_shape, (8,))
        self.layers.append(nn.BatchNorm1d(8))


class Tied(MLPTorso):
    """A torso one layer of which has two names, two layers of which have one weight, and one of which has it twice."""

    def __init__(self, observation_shape):
        super().__init__(observation_shape, (4,))
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
        self.again = self.first
        self.second.weight = self.first.weight
        self.second.twin = self.second.bias

    def forward(self, observation):
        return self.second(self.again(self.first(super().forward(observation))).relu()) + self.second.twin


def test_tensors_and_layers_with_two_names_learn_the_same(make_trainer, compilations):
    plain, compiled = assert_same(make_trainer, torso=Tied)
    assert len(compilations) == 1
    for learner in (plain, compiled):
        assert learner.online.torso.first.weight is learner.online.torso.second.weight
    assert all(type(tensor) in (torch.Tensor, nn.Parameter) for tensor in compiled.state_dict(keep_vars=True).values())


@pytest.mark.parametrize("torso", [Normalized, MinAtarTorso])
def test_buffers_and_convolutions_learn_the_same(make_trainer, compilations, torso):
    data = Batches((3, 10, 10)) if torso is MinAtarTorso else None
    optimizer = partial(torch.optim.Adam, lr=1e-3, eps=3.125e-4)  # of configs/env/minatar.yaml
    plain, _ = assert_same(make_trainer, data=data, torso=torso, optimizer=optimizer)
    assert len(compilations) == 1
    if torso is Normalized:
        assert plain.online.torso.layers[-1].num_batches_tracked > 1


def test_spectral_norms_are_followed_once_per_update(make_trainer, compilations):
    torso = partial(ImpalaTorso, channels=(2,), residual_layer=SpectralConv2d, pool=2, hidden_size=4)
    plain, _ = assert_same(make_trainer, data=Batches((1, 8, 8), size=4), torso=torso)
    assert len(compilations) == 1
    assert any(name.endswith(".u") for name, _ in plain.named_buffers())


def test_an_update_whose_loss_is_not_finite_changes_nothing_and_is_counted(make_trainer, compilations):
    data = Batches(poisoned=[(1, 0), (2, 1), (2, 2)])
    _, compiled = assert_same(make_trainer, data=data, max_skipped_updates=3)
    assert compiled.skipped_updates == 3
    assert all(torch.isfinite(tensor).all() for tensor in compiled.state_dict().values())


def test_after_too_many_in_a_row_the_run_stops(make_trainer, compilations):
    data = Batches(poisoned=[(1, 2), (2, 0), (2, 1)])
    with pytest.raises(FloatingPointError, match=r"model\.max_skipped_updates"):
        fit(make_trainer, True, data=data, max_skipped_updates=3)


def test_shapes_are_compiled_for_once_each(make_trainer, compilations):
    class Growing(Batches):
        def __iter__(self):
            for number, batch in enumerate(super().__iter__()):
                size = 8 if number % 2 else 5
                yield ReplayBatch(
                    batch.transition.map(lambda field, size=size: field[:, :size]),
                    batch.index[:, :size],
                    batch.weight[:, :size],
                )

    learner, *_ = fit_growing(make_trainer, Growing())
    plain, *_ = fit_growing(make_trainer, Growing(), False)
    torch.testing.assert_close(dict(learner.state_dict()), dict(plain.state_dict()), rtol=1e-5, atol=1e-5)
    assert len(compilations) == 2


def fit_growing(make_trainer, data, compile_updates=True):
    torch.manual_seed(0)
    learner = DQNLightningModule((4,), ACTIONS, torso=SMALL, optimizer=ADAM, compile_updates=compile_updates)
    make_trainer().fit(learner, train_dataloaders=data)
    return (learner,)


def test_a_run_goes_on_from_its_checkpoint(make_trainer, compilations, tmp_path):
    schedule = partial(LinearLR, start_factor=1.0, end_factor=0.01, total_iters=9)
    whole, *_ = fit(make_trainer, True, trainer={"max_epochs": 2}, lr_scheduler=schedule)

    class Save(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            trainer.save_checkpoint(tmp_path / "half.ckpt")

    fit(make_trainer, True, callbacks=[Save()], lr_scheduler=schedule)
    torch.manual_seed(1)
    learner = DQNLightningModule(
        (4,),
        ACTIONS,
        torso=SMALL,
        optimizer=ADAM,
        target_update_period=2,
        target_update_rate=0.5,
        lr_scheduler=schedule,
        compile_updates=True,
    )
    make_trainer(max_epochs=2).fit(learner, train_dataloaders=Batches(), ckpt_path=tmp_path / "half.ckpt")
    assert all(torch.equal(one, two) for one, two in zip(whole.parameters(), learner.parameters(), strict=True))
    assert learner.gradient_steps == 2 * K * BATCHES


class Watching(Callback):
    """Wants to see every update."""

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        assert any(parameter.grad is not None for parameter in pl_module.online.parameters())


class Unreadable(nn.Module):
    """Asks for a number in the middle of its forward, as nothing that is traced can."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.layer = nn.Linear(inputs, outputs)

    def forward(self, features):
        return self.layer(features) * (2.0 if features.sum().item() > 0 else 1.0)


@pytest.mark.parametrize(
    ("reason", "arguments"),
    [
        ("SGD is neither Adam nor AdamW", {"optimizer": partial(torch.optim.SGD, lr=0.1)}),
        (r"trainer\.callbacks \(Watching\) wants to see", {"callbacks": [Watching()]}),
        (r"trainer\.profiler", {"trainer": {"profiler": "simple"}}),
        ("", {"head": partial(ExpectedHead, layer=Unreadable)}),
    ],
)
def test_what_cannot_be_compiled_goes_on_as_it_is_and_says_why(make_trainer, compilations, reason, arguments):
    with pytest.warns(UserWarning, match=rf"model\.compile_updates: updates go on .*{reason}") as said:
        assert_same(make_trainer, tolerance=0, **arguments)
    assert sum("compile_updates" in str(warning.message) for warning in said) == 1
    assert compilations == []


def test_without_a_compiler_updates_go_on_as_they_are(make_trainer, monkeypatch):
    def fail(graph, inputs, **settings):
        raise RuntimeError("no C++ compiler\nand much more")

    monkeypatch.setattr(compile_fx, "compile_fx", fail)
    with pytest.warns(UserWarning, match="updates go on without being compiled: no C\\+\\+ compiler$"):
        assert_same(make_trainer, tolerance=0, head=noisy(ExpectedHead))


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
@pytest.mark.parametrize(
    ("head", "rule"),
    [
        (ExpectedHead, DoubleQLearning()),
        pytest.param(noisy(CategoricalHead), DoubleQLearning(), marks=pytest.mark.slow),
        pytest.param(QuantileHead, QLearning(), marks=pytest.mark.slow),
        pytest.param(noisy(ImplicitQuantileHead), MunchausenQLearning(), marks=pytest.mark.slow),
    ],
)
def test_what_inductor_makes_learns_the_same(make_trainer, caplog, head, rule):
    data = Batches(poisoned=[(1, 1)])
    with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
        assert_same(make_trainer, data=data, head=head, target_rule=rule, trainer={"gradient_clip_val": 0.1})
    assert any("Compiled the update in" in message for message in caplog.messages)


def played(make_trainer, compile_updates, **model):
    torch.manual_seed(0)
    data = ExperienceDataModule(
        "CartPole-v1",
        num_envs=2,
        batch_size=8,
        train_frequency=8,
        gradient_steps=2,
        learning_starts=20,
        steps_per_epoch=80,
        seed=0,
    )
    learner = DQNLightningModule(
        data.observation_shape,
        data.num_actions,
        torso=SMALL,
        optimizer=ADAM,
        compile_updates=compile_updates,
        **model,
    )
    make_trainer(callbacks=[ExperienceCollector(Greedy())], limit_val_batches=0).fit(learner, data)
    return learner, data


@pytest.mark.parametrize("head", [ExpectedHead, noisy(ImplicitQuantileHead)])
def test_acting_is_compiled_as_well_and_acts_the_same(make_trainer, compilations, head):
    _, plain = played(make_trainer, False, head=head)
    _, data = played(make_trainer, True, head=head)
    assert len(compilations) == 2
    assert len(data.buffer) == len(plain.buffer) == 100
    for name, array in plain.buffer.state_arrays().items():
        found = data.buffer.state_arrays()[name]
        assert all(map(np.array_equal, found, array)) if isinstance(array, list) else np.array_equal(found, array)


def test_other_observations_and_gradients_take_the_usual_way(compilations):
    torch.manual_seed(0)
    network = DQNLightningModule((4,), ACTIONS, torso=SMALL, optimizer=ADAM).online
    forward = CompiledForward(network)
    few, many = torch.randn(2, 4), torch.randn(5, 4)
    with torch.no_grad():
        for observation in (few, many, few):
            assert torch.equal(forward(observation), network(observation).q_values)
        next(network.parameters()).mul_(2)
        assert torch.equal(forward(few), network(few).q_values)
    assert len(compilations) == 1


def test_acting_that_cannot_be_compiled_goes_on_as_it_is_and_says_why(compilations):
    torch.manual_seed(0)
    head = partial(ExpectedHead, layer=Unreadable)
    network = DQNLightningModule((4,), ACTIONS, torso=SMALL, head=head, optimizer=ADAM).online
    forward = CompiledForward(network)
    few = torch.randn(2, 4)
    with torch.no_grad(), pytest.warns(UserWarning, match=r"^model\.compile_updates: acting goes on") as said:
        found = [forward(few), forward(few)]
    assert len(said) == 1
    assert all(torch.equal(q_values, network(few).q_values) for q_values in found)


def test_nothing_is_compiled_after_the_fit_or_where_gradients_are_wanted(make_trainer, compilations):
    learner, _ = played(make_trainer, True)
    count = len(compilations)
    with torch.no_grad():
        learner.train()(torch.randn(7, 4))
    assert learner(torch.randn(2, 4)).requires_grad
    assert len(compilations) == count


def test_a_training_step_of_ones_own_is_not_compiled(make_trainer, compilations):
    class Halved(DQNLightningModule):
        def training_step(self, batch, batch_idx):
            found = super().training_step(batch, batch_idx)
            return found | {"loss": found["loss"] / 2}

    torch.manual_seed(0)
    learner = Halved((4,), ACTIONS, torso=SMALL, optimizer=ADAM, compile_updates=True)
    before = [parameter.clone() for parameter in learner.online.parameters()]
    with pytest.warns(UserWarning, match=r"model \(Halved\) has a training_step of its own"):
        make_trainer().fit(learner, train_dataloaders=Batches())
    assert compilations == []
    assert not any(torch.equal(one, two) for one, two in zip(before, learner.online.parameters(), strict=True))

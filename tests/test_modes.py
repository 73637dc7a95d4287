"""Acting and targets use networks in evaluation mode, except for layers that sample."""

from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

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
    NatureTorso,
    NoisyLinear,
    NormalizedTorso,
    PrioritizedReplayBuffer,
    QLearning,
    QuantileHead,
    SpectralConv2d,
    Transition,
)
from lightning_dqn.learner.modes import evaluation_mode, layers_to_switch
from lightning_dqn.ray.actor import Actor, Blueprint, acting_copy

RULES = [QLearning(), DoubleQLearning(), MunchausenQLearning()]


class BatchNormTorso(MLPTorso):
    """A torso whose features depend on the whole batch in training mode."""

    def __init__(self, observation_shape):
        super().__init__(observation_shape, (8,))
        self.layers.append(nn.BatchNorm1d(8))


class DropoutTorso(MLPTorso):
    """A torso that drops features in training mode, by a layer and by a function that looks at its own mode."""

    def __init__(self, observation_shape):
        super().__init__(observation_shape, (32,))
        self.layers.append(nn.Dropout(0.5))

    def forward(self, observation):
        return nn.functional.dropout(super().forward(observation), 0.2, self.training)


class OldSpectralTorso(MLPTorso):
    """A torso with torch's own spectral norm, which follows the weight at every forward in training mode."""

    def __init__(self, observation_shape):
        super().__init__(observation_shape, ())
        self.num_features = 6
        self.layers.append(nn.utils.spectral_norm(nn.Linear(observation_shape[0], 6)))


class NewSpectralTorso(MLPTorso):
    def __init__(self, observation_shape):
        super().__init__(observation_shape, ())
        self.num_features = 6
        self.layers.append(nn.utils.parametrizations.spectral_norm(nn.Linear(observation_shape[0], 6)))


def make_model(torso, **kwargs):
    torch.manual_seed(0)
    # with torch's own epsilon a gradient that is only a rounding error, as before a batch norm, takes a full step
    optimizer = partial(torch.optim.Adam, lr=1e-3, eps=3e-4)
    return DQNLightningModule([4], 2, torso=torso, optimizer=optimizer, **kwargs)


def make_transition(size=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    observation, following = torch.randn(2, size, 4, generator=generator)
    action = torch.randint(2, (size,), generator=generator)
    return Transition(observation, action, torch.randn(size, generator=generator), torch.full((size,), 0.9), following)


def targets_of(model, transition):
    """Return the targets that the losses of a minibatch are computed with."""
    found, rule = [], model.target_rule
    model.target_rule = lambda *arguments: found.append(rule(*arguments)) or found[-1]
    model.losses(transition, torch.ones(len(transition.action)))
    model.target_rule = rule
    return found[0]


def buffers_of(network):
    return [buffer.clone() for buffer in network.buffers()]


def same(first, second):
    return all(torch.equal(one, two) for one, two in zip(first, second, strict=True))


def make_data(**kwargs):
    defaults = {
        "num_envs": 1,
        "batch_size": 8,
        "train_frequency": 4,
        "gradient_steps": 2,
        "learning_starts": 20,
        "steps_per_epoch": 40,
        "eval_episodes": 2,
        "max_eval_steps": 20,
        "seed": 0,
    }
    return ExperienceDataModule("CartPole-v1", **(defaults | kwargs))


# acting


@pytest.mark.parametrize("torso", [BatchNormTorso, OldSpectralTorso, NewSpectralTorso])
def test_acting_of_a_network_with_statistics_is_independent_of_the_batch_and_moves_none(torso):
    model, observation = make_model(torso), torch.randn(5, 4)
    before = buffers_of(model)

    with torch.no_grad():
        together = model(observation)
        alone = torch.cat([model(row[None]) for row in observation])

    torch.testing.assert_close(alone, together)
    assert same(before, buffers_of(model))
    assert all(layer.training for layer in model.modules())


def test_acting_of_a_network_with_dropout_repeats_itself():
    model, observation = make_model(DropoutTorso), torch.randn(5, 4)
    before = torch.get_rng_state()

    with torch.no_grad():
        first, second = model(observation), model(observation)

    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first, model.eval()(observation))


def test_forward_with_gradients_in_training_mode_is_that_of_an_update():
    model, observation = make_model(DropoutTorso), torch.randn(5, 4)

    assert not torch.equal(model(observation), model(observation))


@pytest.mark.parametrize("head", [partial(ExpectedHead, layer=NoisyLinear), ImplicitQuantileHead])
def test_acting_of_layers_that_sample_draws_in_training_and_not_in_evaluation(head):
    model, observation = make_model(MLPTorso, head=head), torch.randn(5, 4)

    with torch.no_grad():
        assert not torch.equal(model(observation), model(observation))
        model.eval()
        assert torch.equal(model(observation), model(observation))


def test_acting_of_a_noise_layer_of_ones_own_draws_if_it_says_so():
    class Noise(nn.Linear):
        samples_while_acting = True

        def forward(self, features):
            return super().forward(features) + self.training * torch.randn(())

    model, observation = make_model(MLPTorso, head=partial(ExpectedHead, layer=Noise)), torch.randn(5, 4)

    with torch.no_grad():
        assert not torch.equal(model(observation), model(observation))


def test_acting_leaves_layers_that_were_in_evaluation_mode_there():
    model = make_model(BatchNormTorso)
    frozen = model.online.torso.layers[-1].eval()

    model.act(torch.randn(5, 4))

    assert [layer for layer in model.modules() if not layer.training] == [frozen]


def test_evaluation_mode_within_itself_or_after_an_exception_restores_modes():
    network = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(2))
    layers = layers_to_switch(network)

    with evaluation_mode(layers):
        with pytest.raises(ZeroDivisionError), evaluation_mode(layers):
            raise ZeroDivisionError
        assert not any(layer.training for layer in layers)

    assert len(layers) == 2
    assert all(layer.training for layer in network.modules())


@pytest.mark.parametrize("head", [ExpectedHead, CategoricalHead, QuantileHead])
@pytest.mark.parametrize(
    ("torso", "shape"),
    [
        (MLPTorso, (4,)),
        (NormalizedTorso, (4,)),
        (NatureTorso, (1, 36, 36)),
        (MinAtarTorso, (1, 10, 10)),
        (partial(ImpalaTorso, channels=(2,), residual_layer=SpectralConv2d, pool=2), (1, 8, 8)),
    ],
)
def test_networks_of_this_package_are_the_same_in_both_modes_without_gradients(torso, head, shape):
    torch.manual_seed(0)
    model = DQNLightningModule(shape, 2, torso=torso, head=partial(head, stream=DuelingStream))
    observation = torch.randint(2, (3, *shape), dtype=torch.uint8)
    before = buffers_of(model)

    with torch.no_grad():
        training = model.online(observation).q_values
        assert same(before, buffers_of(model))
        assert torch.equal(training, model.eval().online(observation).q_values)
    assert layers_to_switch(model.online) == []


# targets


@pytest.mark.parametrize("rule", RULES)
def test_targets_of_a_network_with_dropout_repeat_themselves(rule):
    model, transition = make_model(DropoutTorso, target_rule=rule), make_transition()

    first, second = (targets_of(model, transition).q_values for _ in range(2))

    assert torch.equal(first, second)


@pytest.mark.parametrize("rule", RULES)
def test_targets_of_a_network_with_batch_norm_use_and_move_no_statistics_of_next_observations(rule):
    model, transition = make_model(BatchNormTorso, target_rule=rule), make_transition()
    other = transition._replace(next_observation=torch.cat([transition.next_observation[:1], torch.randn(7, 4)]))
    before = buffers_of(model.target)

    found = [targets_of(model, each).q_values[0] for each in (transition, other)]

    assert torch.equal(*found)
    assert same(before, buffers_of(model.target))
    # the statistics are those of the observations alone, once an update
    norm, features = model.online.torso.layers[-1], model.online.torso.layers[:-1]
    assert norm.num_batches_tracked == 2
    mean = features(transition.observation.unsqueeze(-1)).mean(dim=0)
    torch.testing.assert_close(norm.running_mean, 0.19 * mean)


def test_targets_of_noise_layers_are_noisy():
    model, transition = make_model(MLPTorso, head=partial(ExpectedHead, layer=NoisyLinear)), make_transition()

    first, second = (targets_of(model, transition).q_values for _ in range(2))

    assert (first != second).all()


def test_losses_of_an_implicit_quantile_head_learn_with_dropout():
    model, transition = make_model(DropoutTorso, head=partial(ImplicitQuantileHead, num_samples=4)), make_transition()
    modes = []
    model.online.torso.register_forward_hook(lambda layer, *_: modes.append(layer.training))

    model.losses(transition, torch.ones(8))

    assert modes == [True, False]


# in a run


@pytest.mark.parametrize("torso", [BatchNormTorso, DropoutTorso])
@pytest.mark.parametrize("compile_updates", [False, True])
def test_fit_with_one_environment_acts_in_evaluation_mode(make_trainer, compilations, torso, compile_updates):
    model = make_model(torso, compile_updates=compile_updates)
    data, moved = make_data(), []
    forward = model.forward

    def watched(observation):
        before = buffers_of(model.online), torch.get_rng_state()
        q_values = forward(observation)
        moved.append(not (same(before[0], buffers_of(model.online)) and torch.equal(before[1], torch.get_rng_state())))
        return q_values

    model.forward = watched
    make_trainer(callbacks=[ExperienceCollector(Greedy())]).fit(model, data)

    assert len(moved) > 40
    assert not any(moved)
    assert len(compilations) == 2 * compile_updates
    if torso is BatchNormTorso:
        assert model.online.torso.layers[-1].num_batches_tracked == model.gradient_steps == 20


@pytest.mark.parametrize("torso", [BatchNormTorso, DropoutTorso])
def test_fit_compiled_or_not_comes_to_the_same_weights_statistics_and_actions(make_trainer, compilations, torso):
    found = []
    for compile_updates in (False, True):
        model, data = make_model(torso, compile_updates=compile_updates), make_data(num_envs=2)
        torch.manual_seed(1)
        make_trainer(callbacks=[ExperienceCollector(Greedy())], limit_val_batches=0).fit(model, data)
        found.append((model.state_dict(), data.buffer.state_arrays()["action"], torch.rand(3)))

    (plain, acted, drawn), (compiled, also, after) = found
    torch.testing.assert_close(dict(compiled), dict(plain), rtol=1e-4, atol=1e-5)
    assert np.array_equal(acted, also)
    assert torch.equal(drawn, after)
    assert len(compilations) == 2


def test_an_actor_on_ray_acts_and_computes_priorities_in_evaluation_mode():
    data = make_data(buffer=PrioritizedReplayBuffer(100))
    data.open_buffer()
    model = make_model(BatchNormTorso)
    actor = Actor(Blueprint(data.without_experience(), acting_copy(model), Greedy(), 1, (0,), True), 0, 0)
    before = buffers_of(actor._module)

    message = actor.explore(1, 0, 0)
    actor._envs.close()

    assert len(message.td_error) == 1
    assert same(before, buffers_of(actor._module))

"""Convolutions of spectral norm 1: what the weight is divided by, and when the singular vectors are followed."""

import copy
from functools import partial

import pytest
import torch
from torch import nn, tensor
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import spectral_norm

from lightning_dqn import (
    CategoricalHead,
    DoubleQLearning,
    DQNLightningModule,
    DuelingStream,
    ExpectedHead,
    ExperienceDataModule,
    ImpalaTorso,
    ImplicitQuantileHead,
    MunchausenQLearning,
    NoisyLinear,
    QLearning,
    QuantileHead,
    ReplayBatch,
    ReplayBuffer,
    SpectralConv2d,
    Transition,
)
from tests.environments import Pictures

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")

SHAPE = (2, 8, 8)
IMPALA = partial(ImpalaTorso, channels=(3, 5), pool=2, hidden_size=0, residual_layer=SpectralConv2d)
HEADS = {
    "expected": ExpectedHead,
    "categorical": partial(CategoricalHead, num_atoms=5, v_min=-3.0, v_max=3.0),
    "quantile": partial(QuantileHead, num_quantiles=4),
    "implicit": partial(ImplicitQuantileHead, num_samples=3, num_target_samples=4, num_policy_samples=5),
}
RULES = {"q": QLearning(), "double": DoubleQLearning(), "munchausen": MunchausenQLearning()}


def make_layer(channels=4, seed=0):
    torch.manual_seed(seed)
    return SpectralConv2d(channels, channels)


def matrix(weight):
    return weight.detach().flatten(1)


def largest_singular_value(weight):
    return torch.linalg.svdvals(matrix(weight).double())[0].item()


def vectors(module):
    return [buffer.clone() for layer in spectral_layers(module) for buffer in (layer.u, layer.v)]


def spectral_layers(module):
    return [layer for layer in module.modules() if isinstance(layer, SpectralConv2d)]


def same(tensors, others):
    return all(torch.equal(a, b) for a, b in zip(tensors, others, strict=True))


def learn(layer, images, optimizer=None):
    loss = layer(images).square().sum()
    layer.zero_grad()
    loss.backward()
    if optimizer is not None:
        optimizer.step()


def set_by_hand(layer, weight, u, v):
    with torch.no_grad():
        layer.weight.copy_(tensor(weight).view_as(layer.weight))
        layer.u.copy_(tensor(u))
        layer.v.copy_(tensor(v))
        layer.bias.zero_()


# the numbers


def test_a_step_and_a_division_by_hand():
    # W = [[3, 0], [4, 5]], v = (1, 0): u = W v / |W v| = (3, 4) / 5, then W^T u = (25, 20) / 5, v = (5, 4) / sqrt(41),
    # sigma = u^T W v = |W^T u| = sqrt(41)
    layer = SpectralConv2d(2, 2, kernel_size=1)
    set_by_hand(layer, [[3.0, 0.0], [4.0, 5.0]], u=[1.0, 0.0], v=[1.0, 0.0])

    weight = layer.normalized_weight()

    torch.testing.assert_close(layer.u, tensor([0.6, 0.8]))
    torch.testing.assert_close(layer.v, tensor([5.0, 4.0]) / 41**0.5)
    torch.testing.assert_close(weight.flatten(1), tensor([[3.0, 0.0], [4.0, 5.0]]) / 41**0.5)


def test_the_gradient_by_hand():
    # d sum(C * W / sigma) / dW = (C - (sum(C * W) / sigma) * u v^T) / sigma, u and v held fixed (equation 12)
    layer = SpectralConv2d(2, 2, kernel_size=1)
    set_by_hand(layer, [[2.0, 0.0], [0.0, 1.0]], u=[1.0, 0.0], v=[1.0, 0.0])
    c = tensor([[3.0, 5.0], [7.0, 11.0]])

    (c * layer.normalized_weight().flatten(1)).sum().backward()

    # sigma = 2, sum(C * W) = 17, u v^T = [[1, 0], [0, 0]]
    torch.testing.assert_close(layer.weight.grad.flatten(1), (c - 8.5 * tensor([[1.0, 0.0], [0.0, 0.0]])) / 2)


def test_it_is_a_convolution_with_the_weight_so_divided():
    layer, images = make_layer().eval(), torch.randn(2, 4, 5, 6)

    expected = nn.functional.conv2d(images, layer.normalized_weight(), layer.bias, padding=1)

    assert layer(images).shape == (2, 4, 5, 6)
    assert torch.equal(layer(images), expected)
    assert not torch.allclose(layer(images), nn.functional.conv2d(images, layer.weight, layer.bias, padding=1))


@pytest.mark.parametrize("seed", range(3))
def test_sigma_becomes_the_largest_singular_value_of_the_weight_as_a_matrix_of_output_channels(seed):
    layer, images = SpectralConv2d(6, 6), torch.randn(1, 6, 3, 3)
    sigmas = []
    for _ in range(200):
        learn(layer, images)
        sigmas.append(torch.dot(layer.u, matrix(layer.weight).mv(layer.v)).item())

    truth = largest_singular_value(layer.weight)
    assert layer.v.shape == (6 * 3 * 3,)
    assert sigmas[-1] == pytest.approx(truth, rel=1e-5)
    assert max(sigmas) <= truth * (1 + 1e-6)  # between two unit vectors it is never more
    assert largest_singular_value(layer.normalized_weight()) == pytest.approx(1, rel=1e-5)


def test_sigma_is_near_the_truth_from_the_first_forward_on():
    for seed in range(5):
        assert largest_singular_value(make_layer(16, seed).normalized_weight()) == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("optimizer", [torch.optim.Adam, partial(torch.optim.Adam, fused=True), torch.optim.SGD])
def test_updates_are_those_of_torchs_own_spectral_norm_with_one_forward_each(optimizer):
    ours, plain = make_layer(), nn.Conv2d(4, 4, 3, padding=1)
    plain.load_state_dict({"weight": ours.weight, "bias": ours.bias})
    theirs = spectral_norm(plain)
    theirs.parametrizations.weight[0]._u.copy_(ours.u)
    theirs.parametrizations.weight[0]._v.copy_(ours.v)
    for step in range(6):
        images = torch.randn(2, 4, 5, 5, generator=torch.Generator().manual_seed(step))
        for layer in (ours, theirs):
            if step == 0:
                layer.optimizer = optimizer(layer.parameters(), lr=0.05)
            learn(layer, images, layer.optimizer)
        with torch.no_grad():
            ours(images)  # where theirs would take another step
        torch.testing.assert_close(ours.weight, theirs.parametrizations.weight.original, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(ours.u, theirs.parametrizations.weight[0]._u, rtol=1e-5, atol=1e-6)
    assert parametrize.is_parametrized(theirs)


def test_sigma_is_exact_under_autocast():
    layer = make_layer(16).eval()
    exact = layer.normalized_weight()

    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(layer.normalized_weight(), exact)
        assert layer(torch.randn(1, 16, 3, 3)).dtype == torch.bfloat16
        layer.train()
        layer.normalized_weight()  # a step
    again = make_layer(16)
    again.normalized_weight()
    assert torch.equal(layer.u, again.u)


def test_sizes_that_do_not_keep_the_image_are_refused():
    with pytest.raises(ValueError, match=r"^model\.torso\.residual_layer\.kernel_size must be odd, got 2$"):
        SpectralConv2d(3, 3, kernel_size=2)


# when a step is taken


def test_a_forward_with_gradients_takes_one_step_until_a_backward_pass_has_been_through():
    layer, images = make_layer(), torch.randn(1, 4, 3, 3)
    seen = [vectors(layer)]

    first, second = layer(images), layer(2 * images)
    seen.append(vectors(layer))
    (first.sum() + second.square().sum()).backward()
    layer(images)
    seen.append(vectors(layer))
    layer(images)

    assert not same(seen[0], seen[1])
    assert not same(seen[1], seen[2])
    assert same(seen[2], vectors(layer))


def test_two_losses_of_one_step_may_be_differentiated_one_after_the_other():
    layer, images = make_layer(), torch.randn(1, 4, 3, 3)
    first, second = layer(images).sum(), layer(images).square().sum()
    together = torch.autograd.grad(first + second, layer.weight, retain_graph=True)[0]

    first.backward()
    layer(images)  # takes the next step, before the second
    second.backward()

    torch.testing.assert_close(layer.weight.grad, together)


@pytest.mark.parametrize("mode", ["no_grad", "inference_mode"])
@pytest.mark.parametrize("training", [True, False])
def test_a_forward_without_gradients_takes_none(mode, training):
    layer, images = make_layer().train(training), torch.randn(1, 4, 3, 3)
    before = vectors(layer)

    with getattr(torch, mode)():
        layer(images)

    assert same(before, vectors(layer))


def test_a_forward_in_evaluation_mode_takes_none_and_is_differentiable():
    layer, images = make_layer().eval(), torch.randn(1, 4, 3, 3)
    before = vectors(layer)

    learn(layer, images)
    learn(layer, images)

    assert same(before, vectors(layer))
    assert layer.weight.grad.abs().sum() > 0


def test_weights_that_are_not_learned_are_followed_no_further():
    layer, images = make_layer().requires_grad_(False), torch.randn(1, 4, 3, 3, requires_grad=True)
    layer(images).sum().backward()
    before = vectors(layer)

    layer(images).sum().backward()

    assert same(before, vectors(layer))
    assert torch.isfinite(images.grad).all()


@pytest.mark.parametrize("change", ["in place", "behind autograd's back", "loaded", "another tensor"])
@pytest.mark.parametrize("training", [True, False])
def test_every_forward_sees_the_weight_that_is_there(change, training):
    layer, images = make_layer().train(training), torch.randn(1, 4, 3, 3)
    new = torch.randn_like(layer.weight)
    with torch.no_grad():
        layer(images)
        if change == "in place":
            layer.weight.copy_(new)
        elif change == "behind autograd's back":
            layer.weight.data.copy_(new)
        elif change == "loaded":
            layer.load_state_dict(layer.state_dict() | {"weight": new})
        else:
            layer.weight = nn.Parameter(new)
        sigma = torch.dot(layer.u, matrix(new).mv(layer.v))
        torch.testing.assert_close(layer.normalized_weight(), new / sigma)


# in a run


def make_batch(num_updates=2, batch_size=3, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(high, *shape):
        return torch.randint(high, (num_updates, batch_size, *shape), generator=generator)

    observation, following = (draw(256, *SHAPE).to(torch.uint8) for _ in range(2))
    discount = torch.full((num_updates, batch_size), 0.9)
    transition = Transition(observation, draw(3), draw(2).float(), discount, following)
    return ReplayBatch(transition, draw(100), torch.ones(num_updates, batch_size))


class Batches:
    """A dataloader that is nothing but a list."""

    def __init__(self, *batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


def make_model(head="expected", rule="double", stream=DuelingStream, layer=nn.Linear, **kwargs):
    torch.manual_seed(0)
    return DQNLightningModule(
        SHAPE,
        3,
        torso=kwargs.pop("torso", IMPALA),
        head=partial(HEADS[head], stream=stream, layer=layer),
        target_rule=RULES[rule],
        optimizer=partial(torch.optim.Adam, lr=1e-3, fused=True),
        **kwargs,
    )


@pytest.fixture
def steps(monkeypatch):
    """Every step of the power method that is taken, by the layer that takes it."""
    taken, follow = [], SpectralConv2d._follow

    def note(layer):
        taken.append(layer)
        follow(layer)

    monkeypatch.setattr(SpectralConv2d, "_follow", note)
    return taken


@pytest.mark.parametrize("head", HEADS)
@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("layer", [nn.Linear, NoisyLinear])
def test_an_update_takes_one_step_whatever_head_and_rule_ask(head, rule, layer, steps, make_trainer):
    model = make_model(head, rule, layer=layer)
    steps.clear()  # those at the beginning

    make_trainer().fit(model, Batches(make_batch(num_updates=3), make_batch(num_updates=2)))

    layers = spectral_layers(model.online)
    assert model.gradient_steps == 5
    assert len(layers) == 8
    assert len(steps) == 5 * len(layers)
    assert all(sum(taken is layer for taken in steps) == 5 for layer in layers)


def test_acting_and_evaluation_take_none(steps, make_trainer):
    data = ExperienceDataModule(
        partial(Pictures, shape=SHAPE),
        num_envs=2,
        buffer=ReplayBuffer(50),
        batch_size=4,
        train_frequency=8,
        gradient_steps=1,
        learning_starts=10,
        steps_per_epoch=40,
        eval_episodes=2,
        eval_num_envs=2,
        seed=0,
    )
    model, forwards = make_model(), []
    model.online.torso.register_forward_hook(lambda *_: forwards.append(torch.is_grad_enabled()))
    steps.clear()

    make_trainer().fit(model, data)

    assert model.gradient_steps == 5
    assert len(steps) == 5 * 8
    assert forwards.count(True) == 5
    assert forwards.count(False) > 5 * 4


def test_a_hard_copy_says_what_the_online_network_says():
    model, images = make_model(target_update_period=1, target_update_rate=1.0).eval(), make_batch().transition
    online = model.online.train()
    for seed in range(3):
        loss = online(make_batch(seed=seed).transition.observation[0]).q_values.square().sum()
        online.zero_grad()
        loss.backward()
        with torch.no_grad():
            for parameter in online.parameters():
                parameter -= 0.1 * parameter.grad
    model.eval()
    observation = images.observation[0]
    assert not torch.equal(model.target(observation).q_values, model.online(observation).q_values)

    model.update_target()

    states = model.target.state_dict(), model.online.state_dict()
    assert states[0].keys() == states[1].keys()
    assert same(states[0].values(), states[1].values())
    assert torch.equal(model.target(observation).q_values, model.online(observation).q_values)


def test_an_averaged_target_is_normalised_by_its_own_sigma():
    model = make_model(target_update_rate=0.25)
    target, online = spectral_layers(model.target)[0], spectral_layers(model.online)[0]
    with torch.no_grad():
        online.weight.mul_(3.0)
    for _ in range(50):
        learn(online, torch.randn(1, 3, 4, 4))
    old = target.weight.clone()

    model.update_target()

    torch.testing.assert_close(target.weight, 0.75 * old + 0.25 * online.weight)
    assert same(vectors(target), vectors(online))
    # three times as large a weight has the same direction, so the average's largest singular value is 1.5 times the old
    assert largest_singular_value(target.weight) == pytest.approx(1.5 * largest_singular_value(old), rel=1e-5)
    assert largest_singular_value(target.normalized_weight()) == pytest.approx(1, rel=1e-4)


def test_a_copy_goes_its_own_way():
    layer, images = make_layer(), torch.randn(1, 4, 3, 3)
    layer(images)
    twin, before = copy.deepcopy(layer), vectors(layer)
    assert same(before, vectors(twin))

    learn(twin, images)
    learn(twin, images)

    assert not same(before, vectors(twin))
    assert same(before, vectors(layer))


def test_a_resumed_run_is_the_same_bit_for_bit(make_trainer, tmp_path):
    batches = [make_batch(seed=seed) for seed in range(6)]
    whole, first, second = (make_model(head="implicit", layer=NoisyLinear) for _ in range(3))

    torch.manual_seed(1)
    make_trainer(max_epochs=1).fit(whole, Batches(*batches))
    torch.manual_seed(1)
    trainer = make_trainer(max_epochs=1)
    trainer.fit(first, Batches(*batches[:3]))
    trainer.save_checkpoint(tmp_path / "half.ckpt")
    trainer = make_trainer(max_epochs=2)
    trainer.fit(second, Batches(*batches[3:]), ckpt_path=tmp_path / "half.ckpt")

    assert whole.gradient_steps == second.gradient_steps == 12
    assert same(whole.state_dict().values(), second.state_dict().values())
    assert not same(first.state_dict().values(), second.state_dict().values())


def test_a_compiled_update_takes_a_step_and_goes_without_hooks():
    layer, images = make_layer(), torch.randn(1, 4, 3, 3)
    plain = copy.deepcopy(layer)
    compiled = torch.compile(layer, fullgraph=True, backend="eager")

    before = vectors(plain)
    for _ in range(3):
        output = plain(images)
        assert torch.equal(compiled(images), output)
        output.sum().backward()

    assert same(vectors(layer), vectors(plain))
    assert not same(before, vectors(plain))

"""Linear layers with learned noise."""

import copy
import math
from functools import partial

import pytest
import torch
from torch import nn, tensor
from torch.nn import functional as F

from lightning_dqn import DQNLightningModule, ExpectedHead, MLPTorso, ReplayBatch, Transition
from lightning_dqn.learner.noisy import NoisyLinear

IN, OUT = 4, 3


@pytest.fixture
def layer():
    torch.manual_seed(0)
    return NoisyLinear(IN, OUT)


def drawn(layer):
    """The weight and the bias of one forward: the images of the unit vectors and of zero."""
    images = layer(torch.cat([torch.eye(layer.weight.shape[1]), torch.zeros(1, layer.weight.shape[1])]))
    return (images[:-1] - images[-1]).T, images[-1]


def drawn_noise(layer):
    """What was multiplied with the sigmas in one forward."""
    weight, bias = drawn(layer)
    return (weight - layer.weight) / layer.weight_sigma, (bias - layer.bias) / layer.bias_sigma


# the equation


def test_a_forward_equals_the_equations_written_as_a_loop(layer, monkeypatch):
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn_like(parameter))
    noise_out, noise_in = [4.0, -9.0, 0.25], [1.0, -4.0, 0.0, 0.01]
    monkeypatch.setattr(torch, "randn", lambda *size, **kwargs: tensor(noise_out + noise_in))
    x = tensor([[1.0, -2.0, 0.5, 3.0], [0.0, 1.0, 0.0, -1.0]])

    y = layer(x)

    def f(number):
        return math.copysign(math.sqrt(abs(number)), number)

    for b in range(2):
        for o in range(OUT):
            expected = layer.bias[o].item() + layer.bias_sigma[o].item() * f(noise_out[o])
            for i in range(IN):
                noise = f(noise_out[o]) * f(noise_in[i])
                weight = layer.weight[o, i].item() + layer.weight_sigma[o, i].item() * noise
                expected += weight * x[b, i].item()
            assert y[b, o].item() == pytest.approx(expected, rel=1e-5)


def test_the_noise_of_the_weights_is_the_product_of_one_of_outputs_and_one_of_inputs(layer):
    weight_noise, bias_noise = drawn_noise(layer)

    # the bias has the noise of the outputs, and with it every column of the weights is explained by one number
    noise_in = weight_noise[0] / bias_noise[0]
    torch.testing.assert_close(weight_noise, torch.outer(bias_noise, noise_in), rtol=1e-4, atol=1e-5)
    assert torch.linalg.matrix_rank(weight_noise, atol=1e-4) == 1


def test_the_noise_is_the_signed_root_of_a_standard_normal(layer):
    # so its square has the mean sqrt(2 / pi), its fourth power 1, and half of it is negative
    noise = torch.stack([drawn_noise(layer)[1] for _ in range(4000)]).detach()

    assert noise.square().mean().item() == pytest.approx(math.sqrt(2 / math.pi), abs=0.03)
    assert noise.pow(4).mean().item() == pytest.approx(1.0, abs=0.06)
    assert (noise < 0).float().mean().item() == pytest.approx(0.5, abs=0.02)


def test_noise_of_different_inputs_outputs_and_draws_is_unrelated(layer):
    draws = [drawn_noise(layer) for _ in range(4000)]
    columns = torch.stack([torch.cat([weight[0] / bias[0], bias]) for weight, bias in draws]).detach()

    correlations = torch.corrcoef(columns.T)
    following = torch.corrcoef(torch.stack([columns[:-1, 0], columns[1:, 0]]))

    assert (correlations - torch.eye(IN + OUT)).abs().max() < 0.07
    assert following[0, 1].abs() < 0.07


def test_the_mean_over_many_draws_is_the_layer_without_noise(layer):
    x = torch.randn(2, IN)

    mean = torch.stack([layer(x) for _ in range(4000)]).mean(dim=0)

    torch.testing.assert_close(mean, F.linear(x, layer.weight, layer.bias), rtol=0, atol=0.03)


# when there is noise


def test_every_forward_has_noise_of_its_own(layer):
    x = torch.randn(2, IN)

    outputs = [layer(x) for _ in range(5)]

    assert all((a != b).all() for i, a in enumerate(outputs) for b in outputs[:i])


def test_one_draw_serves_a_whole_batch(layer):
    outputs = layer(torch.ones(6, 1) * torch.randn(IN))

    assert torch.equal(outputs, outputs[:1].expand(6, OUT))


def test_in_evaluation_mode_there_is_none(layer):
    layer.eval()
    x = torch.randn(2, IN)
    before = torch.get_rng_state()

    assert torch.equal(layer(x), F.linear(x, layer.weight, layer.bias))
    assert torch.equal(layer(x), layer(x))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_copy_has_the_same_weights_but_noise_of_its_own(layer):
    copied, x = copy.deepcopy(layer), torch.randn(2, IN)

    assert (layer(x) != copied(x)).all()
    assert torch.equal(layer.eval()(x), copied.eval()(x))


def test_a_seed_repeats_the_noise(layer):
    outputs = []
    for _ in range(2):
        torch.manual_seed(1)
        outputs.append(layer(torch.ones(1, IN)))

    assert torch.equal(*outputs)


def test_acting_online_and_target_network_have_different_noise_in_one_training_step():
    torch.manual_seed(0)
    head = partial(ExpectedHead, layer=NoisyLinear)
    model = DQNLightningModule([IN], 2, partial(MLPTorso, hidden_sizes=()), head)
    observation, rows = torch.ones(1, 2, IN), (1, 2)
    outputs = []
    for network in (model.online, model.target):
        noisy = next(layer for layer in network.modules() if isinstance(layer, NoisyLinear))
        noisy.register_forward_hook(lambda layer, inputs, output: outputs.append(output[0].tolist()))
    action, number = torch.zeros(rows, dtype=torch.int64), torch.ones(rows)
    batch = ReplayBatch(Transition(observation, action, number, number, observation), action, number)

    model.act(observation[0])
    model.on_train_batch_start(batch, 0)
    model.training_step(batch, 0)

    # acting, learning, choosing, and valuing by the target network, all on the same observation with the same weights;
    # and none of them without noise
    assert len(outputs) == 4
    model.eval()
    model.act(observation[0])
    assert len({number for output in outputs for number in output}) == 10


# parameters


@pytest.mark.parametrize(("inputs", "sigma"), [(4, 0.5), (64, 0.5), (9, 0.1), (4, 0.0)])
def test_the_noise_starts_at_sigma_over_the_root_of_the_inputs(inputs, sigma):
    layer = NoisyLinear(inputs, 3, sigma)

    torch.testing.assert_close(layer.weight_sigma.detach(), torch.full((3, inputs), sigma / math.sqrt(inputs)))
    torch.testing.assert_close(layer.bias_sigma.detach(), torch.full((3,), sigma / math.sqrt(inputs)))


def test_sigma_is_a_half_by_default():
    assert NoisyLinear(4, 3).weight_sigma[0, 0].item() == 0.25


def test_the_means_start_uniformly_within_one_over_the_root_of_the_inputs():
    torch.manual_seed(0)
    layer = NoisyLinear(100, 200)

    for parameter in (layer.weight.detach(), layer.bias.detach()):
        assert parameter.abs().max() <= 0.1
        assert parameter.abs().max() > 0.095
        assert parameter.abs().mean().item() == pytest.approx(0.05, abs=0.006)


def test_without_sigma_it_is_a_linear_layer():
    noisy, plain = NoisyLinear(IN, OUT, sigma=0.0), nn.Linear(IN, OUT)
    plain.load_state_dict({"weight": noisy.weight, "bias": noisy.bias})
    x = torch.randn(2, IN)

    assert torch.equal(noisy(x), plain(x))


def test_gradients_reach_the_means_and_the_sigmas(layer):
    layer(torch.randn(5, IN)).square().sum().backward()

    assert len(list(layer.parameters())) == 4
    assert all((parameter.grad != 0).all() for parameter in layer.parameters())


def test_the_gradient_of_a_sigma_is_that_of_its_mean_times_the_noise(layer):
    # a sigma that is 0 shows no noise, but has a gradient
    with torch.no_grad():
        layer.bias_sigma.fill_(1.0)
    images = layer(torch.cat([torch.zeros(1, IN), torch.ones(1, IN)]))
    noise = ((images[0] - layer.bias) / layer.bias_sigma).detach()

    images.sum().backward()

    torch.testing.assert_close(layer.bias_sigma.grad, layer.bias.grad * noise, rtol=1e-4, atol=1e-5)


def test_any_leading_axes(layer):
    x = torch.randn(2, 5, IN)

    assert layer(x).shape == (2, 5, OUT)
    assert layer.eval()(x[0]).shape == (5, OUT)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_noise_in_other_precisions(layer, dtype):
    assert layer.to(dtype)(torch.ones(2, IN, dtype=dtype)).dtype == dtype


@pytest.mark.parametrize("sigma", [-1.0, -1e-9, math.nan])
def test_a_negative_sigma_is_refused(sigma):
    with pytest.raises(ValueError, match=r"^model\.head\.layer\.sigma must be at least 0"):
        NoisyLinear(IN, OUT, sigma=sigma)


@pytest.mark.parametrize("sigma", [-0.1, math.inf, math.nan])
def test_a_sigma_that_is_none_is_refused_by_name(sigma):
    with pytest.raises(ValueError, match=r"^model\.head\.layer\.sigma must be at least 0 and finite"):
        NoisyLinear(3, 2, sigma)

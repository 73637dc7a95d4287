"""Mixed precision on images: how far targets may move, and that everything after the network is in float32.

Bounds, worked out: let ``u`` be the unit roundoff, 2^-11 of float16 and 2^-8 of bfloat16. A layer rounds its input,
its weights and its output, each to a relative ``u``; its sums are kept in float32. Roundings are of either sign, so
those of ``L`` layers add up like ``sqrt(3 L) u``: to 4 to 6 ``u`` of the network's largest numbers for the 6 to 12
layers here. A target is a clipped reward plus such a number, which for a fresh network is about a third of it. That
leaves 2 ``u`` of the largest target: 1e-3 for float16 and 8e-3 for bfloat16. (Over six seeds the worst was 0.56 of
either.)
"""

import copy
import dataclasses
from functools import partial

import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn

from lightning_dqn import (
    CategoricalHead,
    DoubleQLearning,
    DQNLightningModule,
    DuelingStream,
    ExpectedHead,
    ImpalaTorso,
    ImplicitQuantileHead,
    MinAtarTorso,
    MunchausenQLearning,
    NatureTorso,
    NoisyLinear,
    QLearning,
    QNetwork,
    QuantileHead,
    ReplayBatch,
    SpectralConv2d,
    Transition,
)

pytestmark = pytest.mark.filterwarnings("ignore:You defined a `validation_step` but have no `val_dataloader`")

BATCH, ACTIONS = 32, 4
TORSOS = {
    "nature": (partial(NatureTorso, hidden_size=64), (4, 36, 36)),
    "impala": (
        partial(ImpalaTorso, channels=(8, 8), pool=3, residual_layer=SpectralConv2d, hidden_size=0),
        (4, 24, 24),
    ),
    "minatar": (MinAtarTorso, (4, 10, 10)),
}
HEADS = {
    "expected": ExpectedHead,
    "categorical": partial(CategoricalHead, num_atoms=21, v_min=-10.0, v_max=10.0),
    "quantile": partial(QuantileHead, num_quantiles=16),
    "implicit": partial(ImplicitQuantileHead, num_samples=8, num_target_samples=8, num_policy_samples=8),
}
RULES = {"q": QLearning(), "double": DoubleQLearning(), "munchausen": MunchausenQLearning()}
BOUNDS = {torch.float16: 1e-3, torch.bfloat16: 8e-3}

every_torso = pytest.mark.parametrize("torso", TORSOS)
every_head = pytest.mark.parametrize("head", HEADS)
every_rule = pytest.mark.parametrize("rule", RULES)
every_dtype = pytest.mark.parametrize("dtype", BOUNDS, ids=str)


def autocast(dtype):
    return torch.autocast("cpu", dtype, enabled=dtype != torch.float32, cache_enabled=False)


def make_networks(torso="nature", head="expected", layer=NoisyLinear, seed=0):
    """An online network and a target that was its copy some updates ago."""
    torch.manual_seed(seed)
    build, shape = TORSOS[torso]
    stream = partial(DuelingStream, hidden_sizes=[32])
    online = QNetwork(shape, ACTIONS, build, partial(HEADS[head], stream=stream, layer=layer))
    target = copy.deepcopy(online)
    with torch.no_grad():
        for parameter in target.parameters():
            parameter.add_(0.1 * parameter.std(correction=0) * torch.randn_like(parameter))
    return online, target


def make_transition(torso="nature", seed=0):
    """Clipped rewards, terminal states among the others."""
    generator = torch.Generator().manual_seed(seed)
    high = 2 if torso == "minatar" else 256
    draw = partial(torch.randint, generator=generator)
    observation, following = draw(high, (2, BATCH, *TORSOS[torso][1]), dtype=torch.uint8)
    reward, alive = draw(3, (BATCH,)).float() - 1, draw(8, (BATCH,)) > 0
    return Transition(observation, draw(ACTIONS, (BATCH,)), reward, 0.97 * alive, following)


def numbers(returns):
    """Everything that a target says, ``[B, ...]``."""
    return next(vars(returns)[name] for name in ("values", "log_probabilities", "quantiles") if name in vars(returns))


# how far targets move


@every_torso
@every_head
@every_rule
@every_dtype
def test_targets_are_near_those_of_float32(torso, head, rule, dtype):
    (online, target), transition = make_networks(torso, head), make_transition(torso)
    goals, choices = {}, {}
    with torch.no_grad():
        for precision in (torch.float32, dtype):
            with autocast(precision):
                torch.manual_seed(1)  # the same noise and fractions
                goals[precision] = RULES[rule](transition, online, target)
                torch.manual_seed(1)
                choices[precision] = (online if rule == "double" else target)(transition.next_observation)
                choices[precision] = choices[precision].q_values.argmax(dim=1)
    exact, mixed = goals[torch.float32], goals[dtype]
    # where two actions are worth the same but for rounding, either may be chosen
    alike = choices[torch.float32] == choices[dtype]
    assert alike.float().mean() >= 0.8

    scale = exact.q_values.abs().max()
    assert scale >= 1
    difference = (mixed.q_values - exact.q_values)[alike].abs().max()
    assert 0 < difference <= BOUNDS[dtype] * scale
    if head != "categorical":  # a quantile is a number of the network, a mean that of many
        assert (numbers(mixed) - numbers(exact))[alike].abs().max() <= 2 * BOUNDS[dtype] * scale


# what comes after the network


def under_autocast(network, dtype):
    """The network under autocast whoever asks it, and nothing else."""

    def ask(observation):
        with autocast(dtype):
            returns = network(observation)
        if hasattr(returns, "draw"):
            draw = returns.draw

            def draw_under_autocast(number):
                with autocast(dtype):
                    return draw(number)

            returns = dataclasses.replace(returns, draw=draw_under_autocast)
        return returns

    return ask


@every_head
@every_rule
@every_dtype
def test_targets_losses_and_priorities_are_computed_in_float32_from_what_the_network_says(head, rule, dtype):
    networks, transition = make_networks("minatar", head), make_transition("minatar")
    online, target = (under_autocast(network, dtype) for network in networks)

    def learn():
        torch.manual_seed(1)
        prediction = online(transition.observation).at(transition.action)
        goal = RULES[rule](transition, online, target)
        loss = prediction.loss(goal)
        return numbers(goal), loss, prediction.td_error(goal, loss), prediction.q_values

    with torch.no_grad():
        outside = learn()
        with autocast(dtype):
            inside = learn()

    assert {part.dtype for part in inside} == {torch.float32}
    assert all(torch.equal(a, b) for a, b in zip(inside, outside, strict=True))


@every_head
@every_rule
@every_dtype
def test_a_small_reward_is_not_lost_beside_a_large_value(head, rule, dtype):
    # at 100 the next float16 is 0.06 away, the next bfloat16 0.5
    kwargs = {"v_min": -200.0, "v_max": 200.0} if head == "categorical" else {}
    torch.manual_seed(0)
    network = QNetwork((4, 10, 10), ACTIONS, MinAtarTorso, partial(HEADS[head], **kwargs))
    last = [module for module in network.head.stream.modules() if isinstance(module, nn.Linear)][-1]
    with torch.no_grad():
        if head == "categorical":
            last.bias.view(ACTIONS, -1)[:, 15] += 20.0  # all probability on the atom of 100
        else:
            last.bias += 100.0
    transition = make_transition("minatar")
    transition = transition._replace(reward=torch.zeros(BATCH), discount=torch.ones(BATCH))
    goals = []
    with torch.no_grad(), autocast(dtype):
        for reward in (0.0, 0.01):
            torch.manual_seed(1)
            goals.append(RULES[rule](transition._replace(reward=transition.reward + reward), network, network).q_values)

    assert goals[0].mean() == pytest.approx(100, abs=1)
    torch.testing.assert_close(goals[1] - goals[0], torch.full((BATCH,), 0.01), rtol=0, atol=1e-4)


# in a run


class Batches:
    """A dataloader that is nothing but a list."""

    def __init__(self, *batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


def make_batch(num_updates=2, seed=0):
    rows = [make_transition("impala", seed=10 * seed + k) for k in range(num_updates)]
    transition = Transition(*(None if f[0] is None else torch.stack(f) for f in zip(*rows, strict=True)))
    return ReplayBatch(transition, torch.zeros(num_updates, BATCH, dtype=torch.int64), torch.ones(num_updates, BATCH))


def make_model(head="implicit", rule="munchausen", **kwargs):
    torch.manual_seed(0)
    build, shape = TORSOS["impala"]
    stream = partial(DuelingStream, hidden_sizes=[32])
    optimizer = partial(torch.optim.Adam, lr=1e-3, fused=True)
    head = partial(HEADS[head], stream=stream, layer=NoisyLinear)
    return DQNLightningModule(shape, ACTIONS, build, head, RULES[rule], optimizer, **kwargs)


def half_precision(init_scale=2.0**16):
    """Lightning's float16 with loss scaling, which its Trainer would only choose on a GPU."""
    return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=init_scale))


def test_on_a_cpu_the_trainer_takes_bfloat16_for_float16(make_trainer):
    with pytest.warns(UserWarning, match="AMP with fp16 is not supported on CPU"):
        trainer = make_trainer(precision="16-mixed")
    assert trainer.precision == "bf16-mixed"


@pytest.mark.parametrize("clip", [None, 0.1])
def test_a_run_in_float16_is_a_loop_with_a_loss_scaler_written_by_hand(clip, make_trainer):
    batches = [make_batch(seed=seed) for seed in range(3)]
    model, by_hand = (make_model(target_update_period=2, target_update_rate=0.5) for _ in range(2))
    plugin, scaler = half_precision(), torch.amp.GradScaler("cpu")

    torch.manual_seed(1)
    make_trainer(plugins=[plugin], gradient_clip_val=clip).fit(model, Batches(*batches))
    torch.manual_seed(1)
    optimizer = by_hand.configure_optimizers()
    for update in range(6):
        transition = batches[update // 2].transition.map(lambda field, k=update % 2: field[k])
        with autocast(torch.float16):
            prediction = by_hand.online(transition.observation).at(transition.action)
            with torch.no_grad():
                goal = by_hand.target_rule(transition, by_hand.online, by_hand.target)
            loss = prediction.loss(goal).mean()
        optimizer.zero_grad()
        scaler.scale(loss).backward()
        scaler.unscale_(optimizer)
        if clip is not None:
            nn.utils.clip_grad_norm_(by_hand.online.parameters(), clip)
        scaler.step(optimizer)
        scaler.update()
        if update % 2:
            by_hand.update_target()

    assert model.gradient_steps == 6
    assert plugin.scaler.get_scale() == scaler.get_scale()
    states = model.state_dict(), by_hand.state_dict()
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])


def test_gradients_that_overflow_cost_an_update_and_nothing_else(make_trainer):
    model, plugin, seen = make_model(target_update_rate=1.0), half_precision(2.0**40), []
    before = [parameter.clone() for parameter in model.online.parameters()]
    step = model.training_step

    def note(batch, batch_idx):
        outputs = step(batch, batch_idx)
        seen.append((outputs["loss"].detach(), outputs["td_error"][-1]))
        return outputs

    model.training_step = note
    make_trainer(plugins=[plugin]).fit(model, Batches(make_batch()))

    assert plugin.scaler.get_scale() == 2.0**38  # halved for either
    assert all(torch.equal(a, b) for a, b in zip(before, model.online.parameters(), strict=True))
    assert all(torch.isfinite(part).all() and part.dtype == torch.float32 for parts in seen for part in parts)

    make_trainer(plugins=[half_precision()]).fit(model, Batches(make_batch()))
    assert not any(torch.equal(a, b) for a, b in zip(before, model.online.parameters(), strict=True))
    assert all(torch.isfinite(tensor).all() for tensor in model.state_dict().values())


@every_head
@every_rule
def test_every_head_and_rule_learns_from_images_in_bfloat16(head, rule, make_trainer):
    model = make_model(head, rule)
    before = {name: parameter.clone() for name, parameter in model.online.named_parameters()}

    make_trainer(precision="bf16-mixed").fit(model, Batches(make_batch()))

    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    for name, parameter in model.online.named_parameters():
        assert torch.isfinite(parameter).all(), name
        assert not torch.equal(before[name], parameter), name


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
@every_head
@every_rule
def test_every_head_and_rule_learns_from_images_on_a_gpu(head, rule, precision, make_trainer):
    model = make_model(head, rule)
    before = {name: parameter.clone() for name, parameter in model.online.named_parameters()}

    make_trainer(accelerator="gpu", precision=precision).fit(model, Batches(make_batch(4), make_batch(4, 1)))

    for name, parameter in model.online.named_parameters():
        assert torch.isfinite(parameter).all(), name
        assert not torch.equal(before[name], parameter.cpu()), name

"""Observations are normalised by statistics that belong to the network."""

import copy
import shutil
from functools import partial

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_dqn import (
    DoubleQLearning,
    DQNLightningModule,
    ExperienceCollector,
    ExperienceDataModule,
    ImpalaTorso,
    MLPTorso,
    MunchausenQLearning,
    NatureTorso,
    NormalizedTorso,
    QLearning,
    ReplayBatch,
    Transition,
)
from lightning_dqn.cli import DQNCLI
from lightning_dqn.learner.normalization import RunningMoments
from tests.ddp_runs import run

BARE = partial(MLPTorso, hidden_sizes=())
SMALL = partial(NormalizedTorso, torso=partial(MLPTorso, hidden_sizes=(8,)))
SCALE, SHIFT = torch.tensor([1.0, 1e3, 1e-3, 5.0]), torch.tensor([0.0, -2e3, 5e-3, 100.0])


def minibatches(count=5, size=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(size + k, 4, generator=generator) * SCALE * (k + 1) + SHIFT for k in range(count)]


def close(found, expected, **tolerances):
    np.testing.assert_allclose(np.asarray(found), expected, **({"rtol": 1e-5, "atol": 1e-6} | tolerances))


# the statistics


def test_an_update_normalises_by_the_moments_of_all_minibatches_so_far():
    torso, seen = NormalizedTorso([4], BARE), np.empty((0, 4))

    for observation in minibatches():
        features = torso(observation)
        seen = np.concatenate([seen, observation.double().numpy()])
        expected = (observation.double().numpy() - seen.mean(axis=0)) / np.sqrt(seen.var(axis=0) + 1e-8)
        close(features.detach(), expected.clip(-10, 10), rtol=1e-4, atol=1e-5)

    close(torso.moments.mean, seen.mean(axis=0))
    close(torso.moments.var, seen.var(axis=0), rtol=1e-4)
    assert torso.moments.count == len(seen)


def test_update_of_a_million_minibatches_still_moves_the_moments():
    moments = RunningMoments([1])
    moments.mean.fill_(3.0)
    moments.count.fill_(32_000_000_001)

    moments.update(torch.full((32, 1), 1e9))

    assert moments.count == 32_000_000_033
    assert moments.mean.item() == pytest.approx(4.0, rel=1e-6)


@pytest.mark.parametrize("gradients", [True, False])
@pytest.mark.parametrize("training", [True, False])
def test_forward_moves_the_moments_in_updates_alone(gradients, training):
    torso = NormalizedTorso([4], BARE).train(training)

    with torch.set_grad_enabled(gradients):
        torso(minibatches()[0])

    assert (torso.moments.count > 0) == (gradients and training)


def test_forward_without_an_update_before_leaves_observations_as_they_are():
    torso, observation = NormalizedTorso([4], BARE), torch.tensor([[0.5, -1.0, 2.0, 11.0]])

    with torch.no_grad():
        features = torso(observation)

    close(features, [[0.5, -1.0, 2.0, 10.0]])


def test_forward_of_a_number_that_never_changes_gives_zero():
    torso = NormalizedTorso([2], BARE)

    for _ in range(3):
        features = torso(torch.tensor([[7.0, 1.0], [7.0, 2.0], [7.0, 3.0]]))

    assert (features[:, 0] == 0).all()


@pytest.mark.parametrize("shape", [(), (4,), (2, 3), [5]])
@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int64, torch.float64])
def test_observations_of_any_shape_and_dtype_are_normalised_number_by_number(shape, dtype):
    torso = NormalizedTorso(shape, BARE)
    observation = torch.randint(0, 2, (6, *shape)).to(dtype)

    features = torso(observation)

    numbers = observation.double().numpy().reshape(6, -1)
    close(features.detach(), (numbers - numbers.mean(axis=0)) / np.sqrt(numbers.var(axis=0) + 1e-8), atol=1e-4)
    assert features.dtype == torch.float32


# both networks


class Batches:
    """A dataloader of a list of batches."""

    def __init__(self, *batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        return iter(self.batches)


def make_batch(observation):
    size = len(observation)
    following = observation.flip(0) * 1.5
    reward, action = torch.linspace(-1, 1, size), torch.arange(size) % 2
    transition = Transition(observation, action, reward, torch.full((size,), 0.9), following)
    return ReplayBatch(transition.map(lambda field: field[None]), torch.arange(size)[None], torch.ones(1, size))


def make_model(**kwargs):
    torch.manual_seed(0)
    # with torch's own epsilon a gradient that is only a rounding error takes a full step
    defaults = {"torso": SMALL, "optimizer": partial(torch.optim.Adam, lr=1e-3, eps=1e-5), "target_update_period": 100}
    return DQNLightningModule([4], 2, **(defaults | kwargs))


@pytest.mark.parametrize("rule", [QLearning(), DoubleQLearning(), MunchausenQLearning()])
@pytest.mark.parametrize("compile_updates", [False, True])
def test_fit_moves_the_moments_by_observations_once_an_update(make_trainer, compilations, rule, compile_updates):
    batches = [make_batch(observation[:7]) for observation in minibatches()]
    model = make_model(target_rule=rule, compile_updates=compile_updates)

    make_trainer().fit(model, Batches(*batches))

    seen = torch.cat([batch.transition.observation[0] for batch in batches]).double().numpy()
    assert model.gradient_steps == 5
    assert model.online.torso.moments.count == len(seen)
    close(model.online.torso.moments.mean, seen.mean(axis=0))
    close(model.online.torso.moments.var, seen.var(axis=0), rtol=1e-4)
    assert len(compilations) == compile_updates


def test_fit_compiled_or_not_comes_to_the_same(make_trainer, compilations):
    batches = [make_batch(observation[:7]) for observation in minibatches()]
    plain, compiled = (make_model(compile_updates=compile_updates) for compile_updates in (False, True))

    for model in (plain, compiled):
        make_trainer().fit(model, Batches(*batches))

    torch.testing.assert_close(dict(compiled.state_dict()), dict(plain.state_dict()), rtol=1e-4, atol=1e-5)
    assert len(compilations) == 1


def test_the_target_network_has_the_moments_of_the_online_network_at_once(make_trainer):
    model = make_model()

    make_trainer().fit(model, Batches(make_batch(minibatches()[1])))

    observation = minibatches()[2]
    assert model.gradient_steps < model.target_update_period
    assert model.target.torso.moments is model.online.torso.moments
    weights = [{tensor.data_ptr() for tensor in network.parameters()} for network in (model.online, model.target)]
    assert weights[0].isdisjoint(weights[1])
    # what the inner torsos get is the same
    seen = []
    for network in (model.online, model.target):
        network.torso.torso.register_forward_hook(lambda layer, inputs, output: seen.append(inputs[0]))
        with torch.no_grad():
            network(observation)
    assert torch.equal(*seen)


def test_the_moments_stay_shared_in_a_copy_and_after_a_conversion_and_loading():
    model = make_model()
    model.online(minibatches()[0])

    for other in (copy.deepcopy(model), make_model()):
        other.double().float()
        other.load_state_dict(model.state_dict())
        other.online(minibatches()[1])
        assert other.target.torso.moments is other.online.torso.moments
        assert other.online.torso.moments.count == 7 + 8
        assert other.state_dict()["target.torso.moments.count"] == 7 + 8
    assert model.online.torso.moments.count == 7


# in a run


def make_data(**kwargs):
    defaults = {
        "num_envs": 2,
        "batch_size": 8,
        "train_frequency": 4,
        "gradient_steps": 2,
        "learning_starts": 20,
        "steps_per_epoch": 40,
        "eval_episodes": 4,
        "max_eval_steps": 100,
        "seed": 0,
    }
    return ExperienceDataModule("CartPole-v1", **(defaults | kwargs))


def test_acting_leaves_the_moments_as_they_are_and_is_independent_of_the_batch():
    model = make_model()
    model.online(minibatches()[0])
    before, observation = copy.deepcopy(model.online.torso.moments.state_dict()), minibatches()[1]

    with torch.no_grad():
        together = model(observation)
        alone = torch.cat([model(row[None]) for row in observation])

    torch.testing.assert_close(alone, together)
    assert all(torch.equal(value, before[name]) for name, value in model.online.torso.moments.state_dict().items())


def test_validate_from_the_checkpoint_of_a_fit_has_the_score_of_its_end(make_trainer, tmp_path):
    model = make_model()
    latest = ModelCheckpoint(tmp_path, "latest", save_on_train_epoch_end=False)
    trainer = make_trainer(callbacks=[ExperienceCollector(), latest], enable_checkpointing=True, max_epochs=3)
    trainer.fit(model, make_data())
    score = trainer.callback_metrics["val/return"]

    again = make_model()
    (found,) = make_trainer().validate(again, make_data(), ckpt_path=tmp_path / "latest.ckpt", verbose=False)

    assert found["val/return"] == score
    assert again.online.torso.moments.count == 30 * 2 * 8
    loaded = DQNLightningModule.load_from_checkpoint(tmp_path / "latest.ckpt")
    assert loaded.hparams["torso"]["init_args"]["torso"]["init_args"] == {"hidden_sizes": [8]}
    assert torch.equal(loaded.online.torso.moments.mean, model.online.torso.moments.mean)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler")
def test_what_inductor_makes_moves_the_same_moments(make_trainer, caplog):
    batches = [make_batch(observation[:7]) for observation in minibatches()]
    plain, compiled = (make_model(compile_updates=compile_updates) for compile_updates in (False, True))

    with caplog.at_level("INFO", "lightning.pytorch.utilities.rank_zero"):
        for model in (plain, compiled):
            make_trainer().fit(model, Batches(*batches))

    torch.testing.assert_close(dict(compiled.state_dict()), dict(plain.state_dict()), rtol=1e-4, atol=1e-5)
    assert any("Compiled the update in" in message for message in caplog.messages)


@pytest.mark.parametrize("compile_updates", [False, True])
def test_a_resumed_run_is_the_uninterrupted_one(make_trainer, compilations, tmp_path, compile_updates):
    class Save(Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 0:
                trainer.save_checkpoint(tmp_path / "half.ckpt")

    whole, second = (make_model(compile_updates=compile_updates, target_update_period=7) for _ in range(2))
    data, again = make_data(), make_data()
    torch.manual_seed(1)
    make_trainer(max_epochs=2, callbacks=[ExperienceCollector(), Save()]).fit(whole, data)
    make_trainer(max_epochs=2, callbacks=[ExperienceCollector()]).fit(
        second, again, ckpt_path=tmp_path / "half.ckpt", weights_only=True
    )

    assert whole.online.torso.moments.count == 20 * 2 * 8
    states = whole.state_dict(), second.state_dict()
    assert all(torch.equal(one, two) for one, two in zip(*(state.values() for state in states), strict=True))
    assert np.array_equal(data.buffer.state_arrays()["action"], again.buffer.state_arrays()["action"])


@pytest.mark.slow
def test_two_ranks_have_the_moments_of_the_minibatches_of_both(tmp_path):
    ranks, _ = run(tmp_path, ranks=2, normalized=True, keep_batches=True)

    seen = np.concatenate([batch[0].flatten(0, 1).double().numpy() for rank in ranks for batch in rank["batches"]])
    for rank in ranks:
        assert rank["weights"]["online.torso.moments.count"] == len(seen) == 2 * 45 * 8
        close(rank["weights"]["online.torso.moments.mean"], seen.mean(axis=0), rtol=1e-4)
        close(rank["weights"]["online.torso.moments.var"], seen.var(axis=0), rtol=1e-4)
    first, second = (rank["weights"] for rank in ranks)
    assert all(torch.equal(value, second[name]) for name, value in first.items())


# configuration


def test_a_configuration_names_it_with_and_without_a_torso():
    plain = DQNCLI(["--config=cartpole", "--model.torso=lightning_dqn.NormalizedTorso"], run=False).model.online.torso
    assert isinstance(plain.torso, MLPTorso)
    assert (plain.num_features, plain.clip, plain.epsilon) == (128, 10.0, 1e-8)

    inner = "{class_path: lightning_dqn.MLPTorso, init_args: {hidden_sizes: [5]}}"
    torso = f"{{class_path: lightning_dqn.NormalizedTorso, init_args: {{clip: 5, torso: {inner}}}}}"
    chosen = DQNCLI(["--config=cartpole", f"--model.torso={torso}"], run=False).model.online.torso
    assert (chosen.num_features, chosen.clip) == (5, 5.0)


@pytest.mark.parametrize("name", ["clip", "epsilon"])
@pytest.mark.parametrize("value", [0.0, -1.0, float("inf"), float("nan")])
def test_a_number_out_of_range_is_refused_by_name(name, value):
    with pytest.raises(ValueError, match=rf"^model\.torso\.{name}: must be positive and finite \(got {value}\)\.$"):
        NormalizedTorso([4], **{name: value})


@pytest.mark.parametrize("torso", [NatureTorso, ImpalaTorso])
def test_a_torso_of_images_is_refused_by_name(torso):
    said = rf"^model\.torso\.torso: {torso.__name__} scales images itself. Use model\.torso: {torso.__name__}\.$"
    with pytest.raises(ValueError, match=said):
        NormalizedTorso([1, 36, 36], torso)

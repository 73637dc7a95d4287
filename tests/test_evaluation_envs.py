import gymnasium as gym
import pytest

from lightning_dqn.experience.envs import make_envs
from lightning_dqn.experience.evaluation_envs import EvaluationEnvs
from tests.environments import ChainVector, Counted


def of(env_id, count, vectorization, is_registered=True):
    def make(count, vectorization):
        made.append((count, vectorization))
        return make_envs(env_id, count, {}, (), vectorization)

    made = []
    return EvaluationEnvs(make, count, vectorization, is_registered), made


def test_they_are_made_when_asked_for_kept_and_made_anew_once_closed():
    envs, made = of("CartPole-v1", 2, "sync")
    assert made == []
    first = envs.open()
    assert envs.open() is first
    assert made == [(2, "sync")]
    envs.close()
    envs.close()
    assert envs.open() is not first
    assert made == [(2, "sync")] * 2
    envs.close()


def test_closing_closes_every_one_of_them():
    envs, _ = of(Counted, 3, "sync", is_registered=False)
    Counted.made = Counted.closed = 0
    envs.open()
    envs.close()
    assert (Counted.made, Counted.closed) == (3, 3)


@pytest.mark.parametrize("count", [1, 3])
def test_a_registered_environment_whose_native_members_do_not_reset_alone_is_stepped_one_by_one(count):
    envs, made = of("CartPole-v1", count, "native")
    assert isinstance(envs.open(), gym.vector.SyncVectorEnv)
    assert envs.open().num_envs == count
    assert made == [(max(count, 2), "native"), (count, "sync")]
    envs.close()


def test_native_members_that_reset_alone_are_kept_native():
    envs, made = of("Chain-v0", 3, "native")
    assert isinstance(envs.open(), ChainVector)
    assert made == [(3, "native")]
    envs.close()


def test_an_environment_that_has_no_other_form_is_not_asked_for_one():
    envs, made = of(ChainVector, 1, "native", is_registered=False)
    assert isinstance(envs.open(), ChainVector)
    assert made == [(1, "native")]
    envs.close()


def test_native_environments_that_are_refused_are_closed():
    closed = []

    class Within(ChainVector):
        def close_extras(self, **kwargs):
            closed.append(self)

    def make(count, vectorization):
        return Within(count, mode=gym.vector.AutoresetMode.SAME_STEP)

    envs = EvaluationEnvs(make, 2, "native", is_registered=True)
    with pytest.raises(ValueError, match=r"^data\.vectorization: "):
        envs.open()
    assert len(closed) == 1

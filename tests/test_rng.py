import random

import numpy as np
import torch
from lightning.pytorch import seed_everything

from lightning_dqn.rng import restore_shared_random_state, separate_shared_random_state, shared_random_state


def draw():
    return [
        *torch.randn(3).tolist(),
        *np.random.normal(size=3).tolist(),  # noqa: NPY002
        random.random(),
        random.gauss(0, 1),
    ]


def test_the_shared_generators_go_on_where_they_were(tmp_path):
    draw()  # so that a second Gaussian number is kept back in each
    torch.save(shared_random_state(), tmp_path / "state")
    expected = [draw(), draw()]
    draw()
    restore_shared_random_state(torch.load(tmp_path / "state", weights_only=True))
    assert [draw(), draw()] == expected


def test_ranks_draw_numbers_of_their_own_and_the_first_those_of_one_process():
    def draws(rank):
        seed_everything(5)
        separate_shared_random_state(rank)
        return torch.rand(2).tolist() + np.random.rand(2).tolist() + [random.random()]  # noqa: NPY002

    seed_everything(5)
    alone = torch.rand(2).tolist() + np.random.rand(2).tolist() + [random.random()]  # noqa: NPY002
    assert draws(0) == alone
    found = [draw for rank in range(3) for draw in draws(rank)]
    assert len(set(found)) == 15
    assert draws(2) == draws(2)

import random

import numpy as np
import torch

from lightning_dqn.rng import restore_shared_random_state, shared_random_state


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

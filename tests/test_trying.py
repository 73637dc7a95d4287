"""A torso that does not give what it says is refused in one line, and trying it leaves no trace."""

from functools import partial

import pytest
import torch
from torch import nn

from lightning_dqn.learner.convolutions import ImpalaTorso, MinAtarTorso, NatureTorso
from lightning_dqn.learner.networks import MLPTorso, Torso
from lightning_dqn.learner.spectral import SpectralConv2d
from lightning_dqn.learner.trying import check_dtype, check_torso


class Layers(Torso):
    """Whatever layers, and whatever it says of itself."""

    def __init__(self, num_features, *layers):
        super().__init__()
        self.num_features = num_features
        self.layers = nn.Sequential(*layers)

    def forward(self, observation):
        return self.layers(observation)


class Table(Torso):
    num_features = 6

    def __init__(self):
        super().__init__()
        self.features = nn.Embedding(9, 3)

    def forward(self, observation):
        return self.features(observation).flatten(1)


class Counting(Torso):
    num_features = 1

    def __init__(self):
        super().__init__()
        self.seen = []

    def forward(self, observation):
        self.seen.append(len(observation))
        return observation[:, :1]


@pytest.mark.parametrize(
    ("torso", "shape"),
    [
        (MLPTorso((4,)), (4,)),
        (MLPTorso(()), ()),
        (NatureTorso((1, 36, 36)), (1, 36, 36)),  # of uint8 alone
        (Table(), (2,)),  # of indices alone
        (Layers(4, nn.BatchNorm1d(4), nn.Dropout()), (4,)),
    ],
)
def test_what_gives_what_it_says_is_taken(torso, shape):
    check_torso(torso, shape)


def test_layers_that_do_not_fit_the_observations_are_refused_with_both_sizes():
    said = r"\(3,\); its layers do not fit them, or each other: mat1 and mat2 .* \(2x3 and 4x8\)$"
    with pytest.raises(ValueError, match=r"^model\.torso: Layers cannot take .* model\.observation_shape = " + said):
        check_torso(Layers(8, nn.Linear(4, 8)), (3,))


@pytest.mark.parametrize(("says", "gives"), [(9, r"\(2, 8\)"), (8, r"\(2, 4, 8\)")])
def test_features_that_are_not_as_many_as_it_says_are_refused(says, gives):
    shape = (4,) if says == 9 else (4, 4)
    with pytest.raises(
        ValueError, match=rf"^model\.torso: Layers says num_features = {says}, but .* gives {gives} for"
    ):
        check_torso(Layers(says, nn.Linear(4, 8)), shape)


def test_a_tuple_of_features_is_refused():
    class Pair(Layers):
        def forward(self, observation):
            return observation, observation

    with pytest.raises(ValueError, match=r"^model\.torso: Pair says num_features = 4, but its forward gives \(\) for"):
        check_torso(Pair(4), (4,))


def test_a_torso_that_does_not_say_how_many_is_refused():
    with pytest.raises(ValueError, match=r"^model\.torso: Linear does not say .* self\.num_features in its __init__"):
        check_torso(nn.Linear(4, 8), (4,))


@pytest.mark.parametrize(
    ("torso", "shape"),
    [
        (Layers(4, nn.BatchNorm1d(4), nn.Dropout()), (4,)),
        (ImpalaTorso((1, 36, 36), residual_layer=SpectralConv2d), (1, 36, 36)),
    ],
    ids=["batch norm", "spectral norm"],
)
def test_neither_buffers_nor_random_numbers_move(torso, shape):
    before = {name: tensor.clone() for name, tensor in torso.state_dict().items()}
    generator = torch.get_rng_state()

    check_torso(torso, shape)
    check_dtype(torso, shape, "uint8")

    assert torch.equal(torch.get_rng_state(), generator)
    assert before
    assert all(torch.equal(tensor, before[name]) for name, tensor in torso.state_dict().items())


def test_what_a_torso_keeps_of_its_own_stays_as_it_was():
    torso = Counting()

    check_torso(torso, (4,))

    assert torso.seen == []


def test_a_torso_is_tried_where_its_weights_are():
    check_torso(partial(MLPTorso, hidden_sizes=(8,))((4,)).to("meta"), (4,))


@pytest.mark.parametrize(
    ("torso", "shape", "dtype"),
    [
        (NatureTorso((1, 36, 36)), (1, 36, 36), "uint8"),
        (MinAtarTorso((4, 10, 10)), (4, 10, 10), "bool"),
        (MLPTorso((4,)), (4,), "float64"),
        (Table(), (2,), "int64"),
        # what layers do not take they may take in another precision
        (Layers(8, nn.Linear(4, 8)), (4,), "float16"),
        # and what torch has not is refused by the buffer
        (MLPTorso((4,)), (4,), "longdouble"),
    ],
)
def test_numbers_that_a_torso_does_not_refuse_itself_are_taken(torso, shape, dtype):
    check_dtype(torso, shape, dtype)


def test_numbers_that_a_torso_refuses_are_refused_in_its_words_and_one_line():
    class Picky(Layers):
        def forward(self, observation):
            raise ValueError(f"not {observation.dtype}\nat all")

    advice = "the observations of data.env_id are float32: choose another torso, or a wrapper in data.wrappers"
    with pytest.raises(ValueError, match=rf"^model\.torso: not torch\.float32; {advice} that makes them"):
        check_dtype(Picky(4), (4,), "float32")
    with pytest.raises(ValueError, match=rf"^model\.torso: NatureTorso scales uint8 .*, got torch\.float32; {advice}"):
        check_dtype(NatureTorso((1, 36, 36)), (1, 36, 36), "float32")

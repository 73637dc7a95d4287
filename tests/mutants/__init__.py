"""Mistakes that are easily made in value-based deep reinforcement learning, each as a small change of our code.

``python -m tests.mutants`` makes them one at a time and shows that the tests notice every one. They are kept by class:

- A, :mod:`~tests.mutants.episode_ends`: ends of episodes and vector environments
- B, :mod:`~tests.mutants.n_step`: n-step windows
- C, :mod:`~tests.mutants.ring`: the ring of transitions
- D, :mod:`~tests.mutants.priorities`: prioritised replay
- E, :mod:`~tests.mutants.learning`: targets, losses, gradients, the target network
- F, :mod:`~tests.mutants.distributions`: C51, QR-DQN, IQN, Munchausen, noisy layers
- G, :mod:`~tests.mutants.clock`: schedules, counting, random numbers, the Trainer's loop
- H, :mod:`~tests.mutants.numbers`: dtypes, scaling, what is not finite

A mistake that our code cannot make is in :data:`NOT_APPLICABLE`, with the reason. So every number of :data:`CLASSES` is
in one or the other, which ``tests/test_mutants.py`` checks.
"""

from tests.mutants.clock import CLOCK
from tests.mutants.distributions import DISTRIBUTIONS
from tests.mutants.episode_ends import EPISODE_ENDS
from tests.mutants.learning import LEARNING
from tests.mutants.mutant import Mutant
from tests.mutants.n_step import N_STEP
from tests.mutants.numbers import NUMBERS
from tests.mutants.priorities import PRIORITIES
from tests.mutants.ring import RING

CLASSES = {"A": 15, "B": 10, "C": 7, "D": 14, "E": 14, "F": 11, "G": 11, "H": 5}
"""How many mistakes there are of each class."""

NOT_APPLICABLE = {
    "A13": "EnvPool's resets: ALE has a vector environment of its own, so there is no adapter for EnvPool's",
    "C6": "rows that only close an episode: a transition holds both of its observations, so nothing has to be closed",
}
"""Mistakes that cannot be made here, and why."""

MUTANTS: tuple[Mutant, ...] = (
    *EPISODE_ENDS,
    *N_STEP,
    *RING,
    *PRIORITIES,
    *LEARNING,
    *DISTRIBUTIONS,
    *CLOCK,
    *NUMBERS,
)

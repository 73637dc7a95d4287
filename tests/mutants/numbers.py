"""Class H: dtypes, scaling, what is not finite."""

from tests.mutants.mutant import Mutant

NUMBERS = (
    Mutant(
        id="H1a",
        mistake="Values, and with them targets and losses, stay in half precision",
        file="heads",
        old="return ExpectedReturn(numbers.squeeze(-1).float(), self.loss)",
        new="return ExpectedReturn(numbers.squeeze(-1), self.loss)",
        killers=("heads::test_returns_are_float32_under_autocast",),
    ),
    Mutant(
        id="H1b",
        mistake="Probabilities stay in half precision",
        file="categorical",
        old="torch.log_softmax(logits.float(), dim=-1)",
        new="torch.log_softmax(logits, dim=-1, dtype=logits.dtype)",
        killers=("heads::test_returns_are_float32_under_autocast",),
    ),
    Mutant(
        id="H1c",
        mistake="Quantiles stay in half precision",
        file="quantile",
        old="return QuantileReturn(numbers.float(), self.taus, self.kappa)",
        new="return QuantileReturn(numbers, self.taus, self.kappa)",
        killers=("heads::test_returns_are_float32_under_autocast",),
    ),
    Mutant(
        id="H2",
        mistake="Rewards are stored in double precision, and the target becomes double as well",
        file="replay",
        old="""\
            torch.empty(self.capacity, dtype=torch.int64),
            torch.empty(self.capacity, dtype=torch.float32),
""",
        new="""\
            torch.empty(self.capacity, dtype=torch.int64),
            torch.empty(self.capacity, dtype=torch.float64),
""",
        killers=("replay::test_a_sample_has_the_shapes_and_dtypes_of_a_batch",),
    ),
    Mutant(
        id="H3",
        mistake="A flag is a byte, whose complement is 255",
        file="stepping",
        old="self._resets_next = np.zeros(self.num_envs, np.bool_)",
        new="self._resets_next = np.zeros(self.num_envs, np.uint8)",
        killers=("stepping::test_returns_and_lengths_are_those_of_the_episodes[sync]",),
    ),
    Mutant(
        id="H4a",
        mistake="Images reach the network as numbers up to 255",
        file="networks",
        old="self.layers(observation.float() / 255)",
        new="self.layers(observation.float())",
        killers=("networks::test_images_are_scaled_to_one_exactly_once",),
    ),
    Mutant(
        id="H4b",
        mistake="Images are scaled a second time",
        file="networks",
        old="self.layers(observation.float() / 255)",
        new="self.layers(observation.float() / 255 / 255)",
        killers=("networks::test_images_are_scaled_to_one_exactly_once",),
    ),
    Mutant(
        id="H4c",
        mistake="Images that somebody has scaled already are scaled again",
        file="networks",
        old="        if observation.dtype != torch.uint8:\n",
        new="        if observation.dtype == torch.bool:\n",
        killers=("networks::test_images_that_may_have_been_scaled_already_are_refused",),
    ),
    Mutant(
        id="H5a",
        mistake="Rewards and observations that are not finite are learned from",
        file="stepping",
        old="        if np.isfinite(reward).all() and not",
        new="        if True or not",
        killers=("stepping::test_what_is_not_finite_is_refused_with_environment_step_and_seed",),
    ),
    Mutant(
        id="H5b",
        mistake="A TD error that is not a number becomes a priority",
        file="prioritized",
        old="if not (priority.min() >= self.epsilon and priority.max() < np.inf):",
        new="if priority.min() < self.epsilon or priority.max() == np.inf:",
        killers=("prioritized::test_td_errors_that_are_none_are_refused_and_nothing_changes",),
    ),
)

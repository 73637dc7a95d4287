"""Class F: C51, QR-DQN, IQN, Munchausen, noisy layers."""

from tests.mutants.mutant import Mutant

PROJECTION = """\
    projected.scatter_add_(1, index, probabilities * (1 - share))
    return projected.scatter_add_(1, index + 1, probabilities * share)
"""

DISTRIBUTIONS = (
    Mutant(
        id="F1",
        mistake="An atom that falls exactly on the support has no neighbour to either side, and its mass is lost",
        file="functional",
        old=PROJECTION,
        new="""\
    below, above = position.floor(), position.ceil()
    projected.scatter_add_(1, below.long(), probabilities * (above - position))
    return projected.scatter_add_(1, above.long(), probabilities * (position - below))
""",
        killers=("functional::test_an_atom_on_the_support_keeps_its_probability",),
    ),
    Mutant(
        id="F2a",
        mistake="An atom that falls exactly on the support is given to both sides, and mass is made",
        file="functional",
        old=PROJECTION,
        new="""\
    below, above = position.floor(), position.ceil()
    on_it = (below == above).to(position.dtype)
    projected.scatter_add_(1, below.long(), probabilities * (above - position + on_it))
    return projected.scatter_add_(1, above.long(), probabilities * (position - below + on_it))
""",
        killers=("functional::test_an_atom_on_the_support_keeps_its_probability",),
    ),
    Mutant(
        id="F2b",
        mistake="Where rounding moves an atom beyond the last one, the one before gets less than nothing",
        file="functional",
        old="share = (position - lower).clamp(max=1.0)",
        new="share = position - lower",
        killers=("mutant_gaps::test_no_probability_becomes_negative_where_rounding_moves_an_atom_beyond_the_last",),
    ),
    Mutant(
        id="F3",
        mistake="The probability of returns above the support is lost instead of going to its edge",
        file="functional",
        old="position = (atoms.clamp(low, high) - low)",
        new="probabilities = probabilities * (atoms <= high)\n    position = (atoms.clamp(low, high) - low)",
        killers=("functional::test_atoms_beyond_the_support_go_to_its_edges",),
    ),
    Mutant(
        id="F4a",
        mistake="Greedy is the action with the most probable atom instead of the largest mean",
        file="learner/categorical",
        old="return (self.log_probabilities.exp() * self.atoms).sum(dim=-1)",
        new="return self.log_probabilities.exp().amax(dim=-1)",
        killers=(
            "categorical::test_double_q_learning_chooses_by_the_mean_and_takes_the_distribution_of_the_target_network",
        ),
    ),
    Mutant(
        id="F4b",
        mistake="The logarithm of a softmax is minus infinity where a probability is rounded to 0",
        file="learner/categorical",
        old="torch.log_softmax(logits.float(), dim=-1)",
        new="torch.softmax(logits.float(), dim=-1).log()",
        killers=("categorical::test_extreme_logits_give_finite_losses_and_gradients",),
    ),
    Mutant(
        id="F4c",
        mistake="The target is compared atom by atom, as if the reward had not moved its atoms",
        file="learner/categorical",
        old="projected = project_categorical(target.log_probabilities.exp(), atoms, self.atoms)",
        new="projected = project_categorical(target.log_probabilities.exp(), self.atoms.expand_as(atoms), self.atoms)",
        killers=("categorical::test_the_loss_of_a_backup_equals_the_loop",),
    ),
    Mutant(
        id="F5a",
        mistake="Fractions are taken for those of the target's quantiles instead of the prediction's",
        file="functional",
        old="weight = (taus.unsqueeze(-1) - ",
        new="weight = (taus.unsqueeze(-2) - ",
        killers=("functional::test_the_fraction_belongs_to_the_prediction_also_where_both_are_of_one_size",),
    ),
    Mutant(
        id="F5b",
        mistake="The error is averaged over the prediction and added up over the target",
        file="functional",
        old="return (weight * error).mean(dim=2).sum(dim=1)",
        new="return (weight * error).sum(dim=2).mean(dim=1)",
        killers=("functional::test_quantile_huber_error_equals_the_loop",),
    ),
    Mutant(
        id="F5c",
        mistake="Over- and underestimates are weighed the wrong way round",
        file="functional",
        old="(difference.detach() < 0)",
        new="(difference.detach() > 0)",
        killers=("functional::test_quantile_huber_error_by_hand",),
    ),
    Mutant(
        id="F6a",
        mistake="Quantiles stand at the ends of their intervals instead of the middles",
        file="functional",
        old="dtype=torch.float32) + 0.5) / num_quantiles",
        new="dtype=torch.float32) + 1.0) / num_quantiles",
        killers=("functional::test_quantile_midpoints",),
    ),
    Mutant(
        id="F6b",
        mistake="The quantile Huber error is divided by its threshold once more",
        file="functional",
        old="return (weight * error).mean(dim=2).sum(dim=1)",
        new="return (weight * error / (kappa or 1)).mean(dim=2).sum(dim=1)",
        killers=("functional::test_quantile_huber_error_by_hand",),
    ),
    Mutant(
        id="F7",
        mistake="The cosines of a fraction begin at 1 instead of 0",
        file="functional",
        old="torch.arange(num_cosines, dtype=taus.dtype",
        new="torch.arange(1, num_cosines + 1, dtype=taus.dtype",
        killers=("functional::test_the_fraction_zero_is_all_ones_and_the_first_feature_constant",),
    ),
    Mutant(
        id="F8a",
        mistake="An action is chosen by as many fractions as a prediction has",
        file="learner/quantile",
        old="return self.draw(self.num_policy_samples).q_values",
        new="return self.draw(self.num_samples).q_values",
        killers=("quantile::test_acting_asks_for_the_fractions_of_a_policy",),
    ),
    Mutant(
        id="F8b",
        mistake="A target is drawn at as many fractions as a prediction has",
        file="learner/quantile",
        old="return self.draw(self.num_target_samples).backup(reward, discount)",
        new="return self.draw(self.num_samples).backup(reward, discount)",
        killers=("quantile::test_a_backup_asks_for_the_fractions_of_a_target",),
    ),
    Mutant(
        id="F8c",
        mistake="The fractions that chose an action also value it",
        file="learner/quantile",
        old="""\
        def draw(number: int) -> QuantileReturn:
            taus = self._fractions(features.shape[0], number, features.device)
""",
        new="""\
        fractions: dict[int, Tensor] = self.__dict__.setdefault("drawn", {})

        def draw(number: int) -> QuantileReturn:
            most = fractions.setdefault(len(features), torch.rand(len(features), 64))
            taus = most[:, :number] if self.training else self._fractions(features.shape[0], number, features.device)
""",
        killers=("quantile::test_choosing_and_valuing_have_fractions_of_their_own",),
    ),
    Mutant(
        id="F8d",
        mistake="All rows of a minibatch share their fractions",
        file="learner/quantile",
        old="return torch.rand(batch_size, number, device=device)",
        new="return torch.rand(1, number, device=device).expand(batch_size, number)",
        killers=("quantile::test_in_training_mode_every_draw_and_row_has_random_fractions_of_its_own",),
    ),
    Mutant(
        id="F9a",
        mistake="Munchausen's log-policy is not bounded from below",
        file="learner/targets",
        old=".clamp(self.log_policy_min, 0.0)",
        new=".clamp(max=0.0)",
        killers=("targets::test_the_log_policy_is_not_added_below_its_least",),
    ),
    Mutant(
        id="F9b",
        mistake="The softmax is not of values over the temperature but of the values themselves",
        file="functional",
        old="(q_values - q_values.amax(dim=1, keepdim=True)) / temperature, dim=1)",
        new="(q_values - q_values.amax(dim=1, keepdim=True)), dim=1)",
        killers=("targets::test_the_log_policy_is_that_of_values_over_the_temperature",),
    ),
    Mutant(
        id="F9c",
        mistake="The log-policy is the online network's",
        file="learner/targets",
        old="present = legal_values(target(transition.observation).q_values, transition.action_mask)",
        new="present = legal_values(online(transition.observation).q_values, transition.action_mask)",
        killers=("targets::test_the_munchausen_target_by_hand",),
    ),
    Mutant(
        id="F9d",
        mistake="The log-policy is that of a rounded probability, and minus infinity where it is rounded to 0",
        file="functional",
        old="log_policy = torch.log_softmax((q_values - q_values.amax(dim=1, keepdim=True)) / temperature, dim=1)",
        new="log_policy = torch.softmax(q_values / temperature, dim=1).log()",
        killers=("functional::test_the_logarithm_is_not_that_of_a_rounded_probability",),
    ),
    Mutant(
        id="F9e",
        mistake="The next state is worth its mean value, without the entropy",
        file="learner/targets",
        old="value = following.mixture(policy, entropy_bonus)",
        new="value = following.mixture(policy, torch.zeros_like(entropy_bonus))",
        killers=("targets::test_the_munchausen_target_by_hand",),
    ),
    Mutant(
        id="F9f",
        mistake="The log-policy is multiplied by the temperature twice",
        file="learner/targets",
        old="transition.reward + self.alpha * chosen",
        new="transition.reward + self.alpha * self.temperature * chosen",
        killers=("targets::test_the_log_policy_is_that_of_values_over_the_temperature",),
    ),
    Mutant(
        id="F10a",
        mistake="Noise is drawn once and for all, the same for every forward and every network",
        file="learner/noisy",
        old="noise = torch.randn(out_features + in_features, device=self.weight.device, dtype=self.weight.dtype)",
        new="noise = torch.randn(out_features + in_features, generator=torch.Generator().manual_seed(0))",
        killers=("noisy::test_every_forward_has_noise_of_its_own",),
    ),
    Mutant(
        id="F10b",
        mistake="Every weight has independent noise, which is called factorised",
        file="learner/noisy",
        old="torch.outer(noise_out, noise_in)",
        new="torch.randn_like(self.weight)",
        killers=("noisy::test_the_noise_of_the_weights_is_the_product_of_one_of_outputs_and_one_of_inputs",),
    ),
    Mutant(
        id="F10c",
        mistake="Sigma starts at its constant itself, not over the root of the inputs",
        file="learner/noisy",
        old="torch.full((out_features, in_features), sigma * bound)",
        new="torch.full((out_features, in_features), sigma)",
        killers=("noisy::test_the_noise_starts_at_sigma_over_the_root_of_the_inputs",),
    ),
    Mutant(
        id="F10d",
        mistake="A network is noisy while it is evaluated",
        file="learner/noisy",
        old="        if not self.training:\n",
        new="        if False:\n",
        killers=("noisy::test_in_evaluation_mode_there_is_none",),
    ),
    Mutant(
        id="F10e",
        mistake="The noise keeps its size instead of the root of it",
        file="learner/noisy",
        old="noise = noise.sign() * noise.abs().sqrt()",
        new="noise = noise.sign() * noise.abs()",
        killers=("noisy::test_the_noise_is_the_signed_root_of_a_standard_normal",),
    ),
    Mutant(
        id="F10f",
        mistake="Sigma starts at a tenth instead of a half",
        file="learner/noisy",
        old="sigma: float = 0.5",
        new="sigma: float = 0.1",
        killers=("noisy::test_sigma_is_a_half_by_default",),
    ),
    Mutant(
        id="F11",
        mistake="The explorer that leaves exploring to noisy layers still takes a random action now and then",
        file="experience/exploration",
        old="return np.asarray(q_values.argmax(axis=1), np.int64)",
        new="return EpsilonGreedy(LinearSchedule(0.1, 0.1))(q_values, env_steps, episodes, rng)",
        killers=("exploration::test_without_epsilon_every_action_is_the_best",),
    ),
)

"""Class D: prioritised replay."""

from tests.mutants.mutant import Mutant

SAMPLE_ITEMS = """\
        rest = fraction * sums[-1]
"""
UPDATE_ITEMS = """\
        self._items.reshape(-1)[item] = priority
        self._sum_up(item >> _SHIFT)
"""

PRIORITIES = (
    Mutant(
        id="D1a",
        mistake="Sums are shifted by the differences of their items, and what is rounded away adds up",
        file="experience/sum_tree",
        old=UPDATE_ITEMS,
        new="""\
        item, last = np.unique(item[::-1], return_index=True)
        change = priority[::-1][last] - self._items.take(item)
        self._items.reshape(-1)[item] += change
        np.add.at(self._blocks.reshape(-1), item >> _SHIFT, change)
        np.add.at(self._groups, item >> 2 * _SHIFT, change)
""",
        killers=("sum_tree::test_ten_million_updates_leave_no_error_in_the_total",),
    ),
    Mutant(
        id="D1b",
        mistake="Sums are kept in single precision",
        file="experience/sum_tree",
        old='np.einsum("ij->i", rows)',
        new='np.einsum("ij->i", rows.astype(np.float32)).astype(np.float64)',
        killers=("sum_tree::test_any_updates_and_fills_leave_what_they_would_leave_in_a_list",),
    ),
    Mutant(
        id="D2a",
        mistake="A point that rounding moves past the last item of a block draws one of priority 0",
        file="experience/sum_tree",
        old="if not priority.min() > 0:",
        new="if not priority.min() >= 0:",
        killers=("sum_tree::test_what_has_priority_zero_is_never_drawn_whatever_the_rounding",),
    ),
    Mutant(
        id="D2b",
        mistake="A point that rounding moves past a whole block is looked for in the next one",
        file="experience/sum_tree",
        old="np.minimum(np.bitwise_count(ended), _WIDTH - 1)",
        new="np.bitwise_count(ended)",
        killers=("sum_tree::test_what_has_priority_zero_is_never_drawn_whatever_the_rounding",),
    ),
    Mutant(
        id="D3a",
        mistake="A transition without error gets priority 0 and is never drawn again",
        file="experience/prioritized",
        old="self.tree.update(name % self.capacity, priority**self.alpha)",
        new="self.tree.update(name % self.capacity, (priority - self.epsilon) ** self.alpha)",
        killers=("prioritized::test_with_an_epsilon_a_transition_without_error_is_drawn_as_often_as_it_says",),
    ),
    Mutant(
        id="D3b",
        mistake="Where every priority is 0 there is nothing to divide by",
        file="experience/prioritized",
        old="except ValueError:",
        new="except ZeroDivisionError:",
        killers=("prioritized::test_without_any_priority_draws_are_uniform_and_uncorrected",),
    ),
    Mutant(
        id="D4a",
        mistake="A new transition gets priority 1 instead of the largest so far",
        file="experience/prioritized",
        old="len(transition.action), self.max_priority**self.alpha)",
        new="len(transition.action), 1.0)",
        killers=("prioritized::test_a_new_transition_has_the_largest_priority_there_ever_was",),
    ),
    Mutant(
        id="D4b",
        mistake="The priority of a new transition is raised to the power of alpha twice",
        file="experience/prioritized",
        old="len(transition.action), self.max_priority**self.alpha)",
        new="len(transition.action), (self.max_priority**self.alpha) ** self.alpha)",
        killers=("prioritized::test_a_new_transition_has_the_largest_priority_there_ever_was",),
    ),
    Mutant(
        id="D5a",
        mistake="The largest priority is forgotten as soon as its transition is",
        file="experience/prioritized",
        old="self.max_priority = max(self.max_priority, float(largest))",
        new="self.max_priority = float(largest)",
        killers=("prioritized::test_a_new_transition_has_the_largest_priority_there_ever_was",),
    ),
    Mutant(
        id="D5b",
        mistake="The largest priority is kept with alpha in it, and gets it a second time",
        file="experience/prioritized",
        old="self.max_priority = max(self.max_priority, float(largest))",
        new="self.max_priority = max(self.max_priority, float(largest) ** self.alpha)",
        killers=("prioritized::test_a_new_transition_has_the_largest_priority_there_ever_was",),
    ),
    Mutant(
        id="D6",
        mistake="The total that is drawn from leaves the last item out",
        file="experience/sum_tree",
        old=SAMPLE_ITEMS,
        new="        rest = fraction * (sums[-1] - self.priorities[-1])\n",
        killers=("sum_tree::test_draws_at_the_edges_between_items_are_exact",),
    ),
    Mutant(
        id="D7a",
        mistake="A minibatch is drawn anywhere instead of one transition from each equal part of the total",
        file="experience/prioritized",
        old="fraction = (rng.random((num_updates, batch_size)) + np.arange(batch_size)) / batch_size",
        new="fraction = rng.random((num_updates, batch_size))",
        killers=("prioritized::test_the_draws_of_a_minibatch_come_from_equal_parts_of_the_total",),
    ),
    Mutant(
        id="D7b",
        mistake="The parts reach beyond the total, so the last ones draw what is not there",
        file="experience/prioritized",
        old="+ np.arange(batch_size)) / batch_size",
        new="+ np.arange(batch_size)) / max(batch_size - 1, 1)",
        killers=("prioritized::test_the_draws_of_a_minibatch_come_from_equal_parts_of_the_total",),
    ),
    Mutant(
        id="D7c",
        mistake="The parts are those of all updates together: one minibatch has old transitions, the next new ones",
        file="experience/prioritized",
        old="fraction = (rng.random((num_updates, batch_size)) + np.arange(batch_size)) / batch_size",
        new="""\
parts = np.arange(num_updates * batch_size).reshape(num_updates, batch_size)
        fraction = (rng.random((num_updates, batch_size)) + parts) / parts.size""",
        killers=("prioritized::test_the_draws_of_a_minibatch_come_from_equal_parts_of_the_total",),
    ),
    Mutant(
        id="D8a",
        mistake="An item that is named twice in one update changes the sums twice",
        file="experience/sum_tree",
        old=UPDATE_ITEMS,
        new="""\
        change = priority - self._items.take(item)
        self._items.reshape(-1)[item] = priority
        np.add.at(self._blocks.reshape(-1), item >> _SHIFT, change)
        np.add.at(self._groups, item >> 2 * _SHIFT, change)
""",
        killers=("sum_tree::test_a_priority_given_twice_counts_once",),
    ),
    Mutant(
        id="D8b",
        mistake="Of two priorities of one transition the first counts",
        file="experience/prioritized",
        old="self.tree.update(name % self.capacity, priority**self.alpha)",
        new="self.tree.update(name[::-1] % self.capacity, priority[::-1] ** self.alpha)",
        killers=("prioritized::test_of_several_td_errors_of_one_transition_the_last_counts",),
    ),
    Mutant(
        id="D9a",
        mistake="The priority of a transition that has been overwritten goes to the one in its place",
        file="experience/prioritized",
        old="present = name >= self._first",
        new="present = name >= 0",
        killers=("prioritized::test_a_priority_for_a_transition_that_has_been_overwritten_is_dropped",),
    ),
    Mutant(
        id="D9b",
        mistake="A transition is known by its slot, which will be another's",
        file="experience/prioritized",
        old="name = (slot - self._count) % self.capacity + (self._count - self.capacity)",
        new="name = slot",
        killers=("prioritized::test_a_transition_can_be_overwritten_between_its_sampling_and_its_priority",),
    ),
    Mutant(
        id="D9c",
        mistake="The priority of the oldest transition there is gets lost",
        file="experience/prioritized",
        old="present = name >= self._first",
        new="present = name > self._first",
        killers=("prioritized::test_exactly_the_latest_names_are_known",),
    ),
    Mutant(
        id="D10a",
        mistake="Priorities come from errors that importance weights have been multiplied into",
        file="learner/module",
        old="return Update(loss, prediction.td_error(target, losses),",
        new="return Update(loss, weight * prediction.td_error(target, losses),",
        killers=("module::test_td_errors_do_not_depend_on_the_weights",),
    ),
    Mutant(
        id="D10b",
        mistake="Priorities are squared errors",
        file="learner/distributions",
        old="return (target.q_values - self.values).detach().abs()",
        new="return (target.q_values - self.values).detach().square()",
        killers=("distributions::test_td_error_is_the_size_of_the_difference_whatever_the_loss",),
    ),
    Mutant(
        id="D11",
        mistake="Importance weights count in the loss that is logged, but not in the one that is learned from",
        file="learner/module",
        old="        loss = (weight * losses).mean()\n",
        new="        loss = losses.mean() + ((weight - 1) * losses).mean().detach()\n",
        killers=("module::test_a_sample_of_weight_zero_has_no_part_in_the_gradient",),
    ),
    Mutant(
        id="D12a",
        mistake="Weights are divided by the largest of the whole replay instead of the minibatch's",
        file="experience/prioritized",
        old="weight = (priority.min(axis=1, keepdims=True) / priority)",
        new="weight = (self.tree.priorities[: len(self)].min() / priority)",
        killers=("prioritized::test_weights_are_those_of_the_paper_over_the_largest_of_their_own_minibatch",),
    ),
    Mutant(
        id="D12b",
        mistake="Weights are divided by the largest of all minibatches drawn together",
        file="experience/prioritized",
        old="weight = (priority.min(axis=1, keepdims=True) / priority)",
        new="weight = (priority.min() / priority)",
        killers=("prioritized::test_weights_are_those_of_the_paper_over_the_largest_of_their_own_minibatch",),
    ),
    Mutant(
        id="D13a",
        mistake="Beta stays where it started",
        file="experience/prioritized",
        old="priority) ** self.beta(env_steps, 0)",
        new="priority) ** self.beta(0, 0)",
        killers=("prioritized::test_beta_follows_the_clock_of_environment_steps",),
    ),
    Mutant(
        id="D13b",
        mistake="Beta goes on with every draw instead of every environment step",
        file="experience/replay",
        old="yield self.buffer.sample(self.gradient_steps, self.batch_size, self.rng, self.clock())",
        new="""\
self.draws = getattr(self, "draws", -1) + 1
            yield self.buffer.sample(self.gradient_steps, self.batch_size, self.rng, self.draws)""",
        killers=("replay::test_every_draw_is_told_the_time_at_that_moment",),
    ),
    Mutant(
        id="D13c",
        mistake="A replay saved under another alpha goes on with priorities that mean something else",
        file="experience/prioritized",
        old="if alpha != self.alpha:",
        new="if alpha > 1:",
        killers=("prioritized::test_what_does_not_fit_is_refused_and_nothing_changes",),
    ),
    Mutant(
        id="D14a",
        mistake="Priorities are not saved: a resumed run begins with equal ones",
        file="experience/prioritized",
        old="self.tree.restore(priority)",
        new="self.tree.fill(0, len(self), self.max_priority**self.alpha)",
        killers=("prioritized::test_a_restored_buffer_goes_on_as_the_original_would",),
    ),
    Mutant(
        id="D14b",
        mistake="The largest priority is not saved",
        file="experience/prioritized",
        old="self.max_priority = max_priority",
        new="self.max_priority = 1.0",
        killers=("prioritized::test_a_restored_buffer_goes_on_as_the_original_would",),
    ),
    Mutant(
        id="D14c",
        mistake="A restored tree keeps the sums it had before",
        file="experience/sum_tree",
        old="        self._sum_up(np.arange(len(self._items)))\n",
        new="",
        killers=("sum_tree::test_a_restored_tree_has_the_same_sums_to_the_last_bit",),
    ),
)

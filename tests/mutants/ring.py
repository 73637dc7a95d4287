"""Class C: the ring of transitions."""

from tests.mutants.mutant import Mutant

RING = (
    Mutant(
        id="C1a",
        mistake="The next observation is taken from the slot after, also at the head of the ring",
        file="experience/replay",
        old="        # by name, a transition",
        new="""\
        rows_after = self._columns[0].take((slot + 1) % self.capacity, axis=0)
        rows = rows._replace(next_observation=rows_after)
        # by name, a transition""",
        killers=("replay::test_the_fields_of_a_sampled_row_belong_together_and_stand_at_its_index",),
    ),
    Mutant(
        id="C1b",
        mistake="Slots that were never written can be drawn",
        file="experience/replay",
        old="slot = rng.integers(len(self), size=num_updates * batch_size)",
        new="slot = rng.integers(self.capacity, size=num_updates * batch_size)",
        killers=("replay::test_rows_that_were_never_written_are_never_drawn",),
    ),
    Mutant(
        id="C1c",
        mistake="The newest transition can never be drawn",
        file="experience/replay",
        old="slot = rng.integers(len(self), size=num_updates * batch_size)",
        new="slot = rng.integers(max(1, len(self) - 1), size=num_updates * batch_size)",
        killers=("replay::test_every_transition_is_drawn_equally_often",),
    ),
    Mutant(
        id="C1d",
        mistake="What does not fit in before the end of the ring begins again at the wrong row",
        file="experience/replay",
        old="stored[: count - until_end] = field[until_end:]",
        new="stored[: count - until_end] = field[: count - until_end]",
        killers=("replay::test_the_ring_holds_the_latest_transitions_in_order",),
    ),
    Mutant(
        id="C2",
        mistake="A transition that ends an episode leads to the first observation of the next one",
        file="experience/stepping",
        old="return VectorStep(following, reward,",
        new="return VectorStep(observation, reward,",
        killers=("stepping::test_an_episode_that_ends_is_followed_by_a_new_one_and_leaves_its_neighbours_alone",),
    ),
    Mutant(
        id="C7a",
        mistake="Images are stored as float32, in four times the memory",
        file="experience/replay",
        old="np.empty(shape, observation_dtype),\n            np.empty(self.capacity, _STEP)",
        new="np.empty(shape, np.float32),\n            np.empty(self.capacity, _STEP)",
        killers=("replay::test_observations_of_any_kind_are_stored_as_they_are_and_take_the_memory_that_was_foretold",),
    ),
    Mutant(
        id="C7b",
        mistake="Actions are stored as floating-point numbers",
        file="experience/replay",
        old='("action", np.int64)',
        new='("action", np.float32)',
        killers=("replay::test_a_sample_has_the_shapes_and_dtypes_of_a_batch",),
    ),
)

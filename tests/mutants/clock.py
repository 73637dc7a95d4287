"""Class G: schedules, counting, random numbers, the Trainer's loop."""

from tests.mutants.mutant import Mutant

CLOCK = (
    Mutant(
        id="G1a",
        mistake="A batch is drawn one iteration before it is learned from",
        file="experience/replay",
        old="""\
        while True:
            yield self.buffer.sample(self.gradient_steps, self.batch_size, self.rng, self.clock())
""",
        new="""\
        ahead = self.buffer.sample(self.gradient_steps, self.batch_size, self.rng, self.clock())
        while True:
            batch, ahead = ahead, self.buffer.sample(self.gradient_steps, self.batch_size, self.rng, self.clock())
            yield batch
""",
        killers=("collector::test_each_batch_is_drawn_after_the_steps_of_the_iteration_before",),
    ),
    Mutant(
        id="G1b",
        mistake="The dataset has no length, so the Trainer fetches ahead, and an epoch never ends",
        file="experience/replay",
        old="    def __len__(self) -> int:\n        return self.iterations_per_epoch\n",
        new="",
        killers=("replay::test_the_length_of_a_dataset_is_the_iterations_of_an_epoch",),
    ),
    Mutant(
        id="G2",
        mistake="Worker processes are let draw from copies of the buffer that never fill",
        file="experience/replay",
        old="if get_worker_info() is not None:",
        new="if get_worker_info() is False:",
        killers=("replay::test_a_worker_process_is_refused_with_a_message_that_reaches_the_user",),
    ),
    Mutant(
        id="G3a",
        mistake="Exploration goes by the Trainer's count of optimizer steps",
        file="collector",
        old="return self.explorer(q_values, data.env_steps, self.episodes, self.rng)",
        new="return self.explorer(q_values, pl_module.global_step, self.episodes, self.rng)",
        killers=(
            "exploration::test_schedules_are_asked_with_the_environment_steps_taken_whatever_the_number_of_environments",
        ),
    ),
    Mutant(
        id="G3b",
        mistake="Steps in which an environment only reset itself count as steps",
        file="collector",
        old="data.env_steps += int(np.count_nonzero(step.valid)) * data.world_size",
        new="data.env_steps += len(step.valid) * data.world_size",
        killers=(
            "data_path::test_every_step_starts_one_row_and_every_row_is_exact[native, mask ignored-1-never full]",
        ),
    ),
    Mutant(
        id="G3c",
        mistake="A count of environment steps is logged as float32 and is wrong beyond sixteen million",
        file="collector",
        old="torch.tensor(value, dtype=torch.float64)",
        new="torch.tensor(value, dtype=torch.float32)",
        killers=("collector::test_the_clock_is_exact_beyond_what_float32_can_count",),
    ),
    Mutant(
        id="G3d",
        mistake="Each of several processes counts the environment steps of its own only",
        file="collector",
        old="data.env_steps += int(np.count_nonzero(step.valid)) * data.world_size",
        new="data.env_steps += int(np.count_nonzero(step.valid))",
        killers=("mutant_gaps::test_the_clock_counts_the_steps_of_all_processes",),
    ),
    Mutant(
        id="G4",
        mistake="One random number decides whether all environments explore",
        file="experience/exploration",
        old="explores = rng.random(len(q_values)) < epsilon",
        new="explores = rng.random() < epsilon",
        killers=("exploration::test_each_environment_draws_whether_it_explores_for_itself",),
    ),
    Mutant(
        id="G5",
        mistake="Schedules count steps of all environments together as one",
        file="collector",
        old="return self.explorer(q_values, data.env_steps, self.episodes, self.rng)",
        new="return self.explorer(q_values, data.env_steps // len(observation), self.episodes, self.rng)",
        killers=(
            "exploration::test_schedules_are_asked_with_the_environment_steps_taken_whatever_the_number_of_environments",
        ),
    ),
    Mutant(
        id="G6a",
        mistake="The environment steps of an iteration are counted in steps of all environments together",
        file="collector",
        old="self._due += data.train_frequency",
        new="self._due += data.train_frequency * len(self._observation)",
        killers=("collector::test_epochs_are_counted_in_environment_steps",),
    ),
    Mutant(
        id="G6b",
        mistake="What one iteration collects too much is not made up for in the next",
        file="collector",
        old="self._due += data.train_frequency",
        new="self._due = data.env_steps + data.train_frequency",
        killers=("collector::test_environment_and_gradient_steps_are_counted_exactly[3-16-1]",),
    ),
    Mutant(
        id="G7a",
        mistake="Learning starts after as many steps of all environments together",
        file="collector",
        old="self._due = data.env_steps + warmup",
        new="self._due = data.env_steps + warmup * data.num_envs",
        killers=("collector::test_epochs_are_counted_in_environment_steps",),
    ),
    Mutant(
        id="G7b",
        mistake="Before learning starts the untrained network acts instead of chance",
        file="collector",
        old="self._warm_up(data, self._due)",
        new="self._act(trainer, pl_module, data)",
        killers=("collector::test_actions_before_learning_are_uniformly_random",),
    ),
    Mutant(
        id="G7c",
        mistake="The first update draws from less than one batch",
        file="experience/datamodule",
        old="self.learning_starts = max(learning_starts, batch_size)",
        new="self.learning_starts = max(learning_starts, 1)",
        killers=("datamodule::test_at_least_one_batch_is_collected_before_learning",),
    ),
    Mutant(
        id="G8a",
        mistake="The seeds of runs, ranks and purposes are added up, so that different sums give the same numbers",
        file="experience/datamodule",
        old="np.random.SeedSequence([self.seed, rank, stream])",
        new="np.random.SeedSequence(self.seed + rank + stream)",
        killers=("datamodule::test_no_two_first_observations_are_equal_between_seeds_ranks_and_kinds_of_evaluation",),
    ),
    Mutant(
        id="G8b",
        mistake="Evaluation plays the episodes of training",
        file="experience/datamodule",
        old="np.random.SeedSequence([self.eval_seed, 0, stream])",
        new="np.random.SeedSequence([self.eval_seed, 0, RandomStream.ENVIRONMENTS])",
        killers=("datamodule::test_no_two_first_observations_are_equal_between_seeds_ranks_and_kinds_of_evaluation",),
    ),
    Mutant(
        id="G8c",
        mistake="Evaluation episodes are numbered on from their seed, so validation and test play the same ones",
        file="experience/datamodule",
        old="seeds = [int(seed) for seed in rng.integers(2**31, size=self.eval_episodes)]",
        new="seeds = [self.eval_seed + episode for episode in range(self.eval_episodes)]",
        killers=("datamodule::test_no_two_first_observations_are_equal_between_seeds_ranks_and_kinds_of_evaluation",),
    ),
    Mutant(
        id="G8d",
        mistake="The episodes of evaluation change without a word, and results compare with no earlier ones",
        file="experience/datamodule",
        old="np.random.SeedSequence([self.eval_seed, 0, stream])",
        new="np.random.SeedSequence([self.eval_seed, 1, stream])",
        killers=("mutant_gaps::test_the_episodes_of_evaluation_are_what_they_were",),
    ),
    Mutant(
        id="G9a",
        mistake="Evaluation draws from the random numbers of training",
        file="experience/datamodule",
        old="rng = np.random.default_rng(np.random.SeedSequence([self.eval_seed, 0, stream]))",
        new="rng = self.replay_rng if self.envs is not None else self.rng(stream)",
        killers=("collector::test_evaluation_does_not_change_training",),
    ),
    Mutant(
        id="G9b",
        mistake="Evaluation plays in the environments of training",
        file="experience/datamodule",
        old="        if self._evaluation_envs is None:\n            count",
        new="""\
        if self.envs is not None:
            return self.envs.envs
        if self._evaluation_envs is None:
            count""",
        killers=("collector::test_evaluation_does_not_change_training",),
    ),
    Mutant(
        id="G9c",
        mistake="Evaluation takes a random action now and then",
        file="learner/module",
        old="return self.act(observation, action_mask).cpu().numpy()",
        new="""\
actions = self.act(observation, action_mask).cpu().numpy()
        return np.where(np.random.random(len(actions)) < 0.05, 0, actions)""",
        killers=("mutant_gaps::test_evaluation_takes_the_best_action_every_time",),
    ),
    Mutant(
        id="G10a",
        mistake="Actions are sent as indices to environments whose actions do not start at 0",
        file="experience/stepping",
        old="action + self._first_action if self._first_action else action",
        new="action",
        killers=("stepping::test_actions_are_indices_whatever_the_start_of_the_space",),
    ),
    Mutant(
        id="G10b",
        mistake="Actions are stored as the environment calls them instead of as indices",
        file="collector",
        old="data.accumulator.add(reference, action, ",
        new="data.accumulator.add(reference, action + self._envs._first_action, ",
        killers=("collector::test_stored_actions_are_indices",),
    ),
    Mutant(
        id="G11a",
        mistake="Returns are those of clipped rewards",
        file="experience/stepping",
        old="self.episode_return + reward * valid",
        new="self.episode_return + np.sign(reward) * valid",
        killers=("stepping::test_returns_and_lengths_are_those_of_the_episodes[sync]",),
    ),
    Mutant(
        id="G11b",
        mistake="An episode that was cut off goes on counting in the next one's return",
        file="experience/stepping",
        old="""\
        self.episode_return = np.where(done, 0.0, self.episode_return)
        self.episode_length = np.where(done, 0, self.episode_length)
""",
        new="        self.episode_length = np.where(done, 0, self.episode_length)\n",
        killers=("stepping::test_returns_and_lengths_are_those_of_the_episodes[sync]",),
    ),
    Mutant(
        id="G11c",
        mistake="What a step says of its episode's return is set back to 0 before it is read",
        file="experience/stepping",
        old="""\
        self.episode_return = np.where(done, 0.0, self.episode_return)
        self.episode_length = np.where(done, 0, self.episode_length)
""",
        new="        self.episode_return[done] = 0\n        self.episode_length[done] = 0\n",
        killers=("stepping::test_returns_and_lengths_are_those_of_the_episodes[sync]",),
    ),
    Mutant(
        id="G11d",
        mistake="After a resume the mean return is that of the first episodes to end, which are the short ones",
        file="collector",
        old='self._recent.extend((score, length) for score, length in state_dict["recent"])',
        new="pass",
        killers=("mutant_gaps::test_a_collector_remembers_the_latest_episodes_over_a_checkpoint",),
    ),
)

"""Class B: n-step windows."""

from tests.mutants.mutant import Mutant

CLOSES = "closes = opened & ((self._age == self.n_step) | terminated | truncated)"
TERMINAL = "n_step::test_rewards_1_2_4_8_and_a_terminal_state_with_windows_of_three"
TIME_LIMIT = "n_step::test_rewards_1_2_4_8_and_a_time_limit_with_windows_of_three"

N_STEP = (
    Mutant(
        id="B1",
        mistake="The windows still open at the end of an episode are thrown away",
        file="experience/n_step",
        old=CLOSES,
        new="closes = opened & (self._age == self.n_step); self._age[opened & ~closes & (terminated | truncated)] = 0",
        killers=(TERMINAL,),
    ),
    Mutant(
        id="B2",
        mistake="A window runs over a truncation into the next episode",
        file="experience/n_step",
        old=CLOSES,
        new="closes = opened & ((self._age == self.n_step) | terminated)",
        killers=("n_step::test_windows_are_those_of_one_environment_at_a_time",),
    ),
    Mutant(
        id="B3",
        mistake="Whether a window ends in a terminal state is asked of its first step instead of its last",
        file="experience/n_step",
        old="discount = np.where(terminated[env], 0.0,",
        new="discount = np.where(terminated[env] & (self._age[slot, env] == 1), 0.0,",
        killers=(TERMINAL,),
    ),
    Mutant(
        id="B4a",
        mistake="What follows a window of several steps is discounted as after a single one",
        file="experience/n_step",
        old="self._powers[self._age[slot, env]])",
        new="self._powers[1])",
        killers=(TIME_LIMIT,),
    ),
    Mutant(
        id="B4b",
        mistake="What follows a window that an end has cut short is discounted as after a full one",
        file="experience/n_step",
        old="self._powers[self._age[slot, env]])",
        new="self._powers[self.n_step])",
        killers=(TIME_LIMIT,),
    ),
    Mutant(
        id="B5a",
        mistake="Windows are summed with a gamma of their own, whatever gamma was asked for",
        file="experience/datamodule",
        old="self.accumulator = NStepAccumulator(num_envs, n_step, gamma)",
        new="self.accumulator = NStepAccumulator(num_envs, n_step, 0.99)",
        killers=("data_path::test_any_gamma_is_the_one_that_is_stored[0.5]",),
    ),
    Mutant(
        id="B5b",
        mistake="A resumed run has another gamma than the returns that its replay holds, and nobody says so",
        file="resume",
        old="        if meta[name] != getattr(data, name):\n",
        new="        if False:\n",
        killers=("mutant_gaps::test_going_on_with_another_gamma_or_window_than_the_replay_holds_is_warned_of",),
    ),
    Mutant(
        id="B6a",
        mistake="An end in one environment closes the windows of all, as if they stood in one queue",
        file="experience/n_step",
        old=CLOSES,
        new="closes = opened & ((self._age == self.n_step) | (terminated | truncated).any())",
        killers=("n_step::test_windows_are_those_of_one_environment_at_a_time",),
    ),
    Mutant(
        id="B6b",
        mistake="The windows of all environments start with the observations of the first",
        file="experience/n_step",
        old="started = self._observation[slot, env], self._action[slot, env]",
        new="started = self._observation[slot, 0], self._action[slot, env]",
        killers=("n_step::test_windows_are_those_of_one_environment_at_a_time",),
    ),
    Mutant(
        id="B7",
        mistake="A window begins with the rewards of the one whose slot it takes",
        file="experience/n_step",
        old="        self._reward[slot, env] = 0.0\n",
        new="",
        killers=(TERMINAL,),
    ),
    Mutant(
        id="B8",
        mistake="All open windows hold one and the same array of observations, which moves on with every step",
        file="experience/n_step",
        old="self._observation[slot, env] = observation[valid]",
        new="self._observation = np.broadcast_to(observation, self._observation.shape)",
        killers=(TERMINAL,),
    ),
    Mutant(
        id="B9a",
        mistake="The slot after the newest transition can be drawn, though its window is still open",
        file="experience/prioritized",
        old="self.tree.fill(head, len(transition.action), self.max_priority**self.alpha)",
        new="self.tree.fill(head, min(len(transition.action) + 1, self.capacity), self.max_priority**self.alpha)",
        killers=("prioritized::test_a_new_transition_has_the_largest_priority_there_ever_was",),
    ),
    Mutant(
        id="B9b",
        mistake="A window is stored, and can be drawn, with its first step",
        file="experience/n_step",
        old=CLOSES,
        new="closes = opened.copy()",
        killers=(TERMINAL,),
    ),
    Mutant(
        id="B10",
        mistake="The later rewards of a window are not multiplied by the discounts of the steps before",
        file="experience/n_step",
        old="np.where(opened, self._powers[self._age] * reward, 0.0)",
        new="np.where(opened, reward, 0.0)",
        killers=(TERMINAL,),
    ),
)

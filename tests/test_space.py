"""Search files: what they say, and what is refused."""

import pytest

from lightning_dqn.apps.command import Refusal
from lightning_dqn.apps.space import Domain, closest, read_search

SPACE = "space: {data.n_step: {low: 1, high: 3}, data.gamma: {choices: [0.9, 0.99]}}\n"


def search(tmp_path, text, **instead):
    (tmp_path / "search.yaml").write_text(text)
    return read_search(tmp_path / "search.yaml", instead)


def test_a_file_is_read_and_its_fields_can_be_replaced(tmp_path):
    found = search(tmp_path, "sampler: random\ntrials: 7\n" + SPACE, trials=3)
    assert (found.sampler, found.pruner, found.trials, found.seeds) == ("random", "median", 3, 1)
    assert found.space == {"data.n_step": Domain(low=1, high=3), "data.gamma": Domain([0.9, 0.99])}


def test_a_grid_is_every_combination(tmp_path):
    found = search(tmp_path, "sampler: grid\ntrials: null\n" + SPACE)
    assert found.grid == {"data.n_step": [1, 2, 3], "data.gamma": [0.9, 0.99]}
    assert found.num_trials == 6
    assert search(tmp_path, "sampler: grid\ntrials: 4\n" + SPACE).num_trials == 4
    assert search(tmp_path, "sampler: grid\ntrials: 40\n" + SPACE).num_trials == 6


@pytest.mark.parametrize("trials", ["", "trials: null\n"])
def test_a_search_without_a_number_of_trials_is_the_whole_grid_or_twenty(tmp_path, trials):
    many = "space: {data.n_step: {low: 1, high: 30}}\n"
    assert search(tmp_path, "sampler: grid\n" + trials + many).num_trials == 30
    for sampler in ("random", "tpe"):
        assert search(tmp_path, f"sampler: {sampler}\n" + trials + many).num_trials == 20


@pytest.mark.parametrize(
    ("domain", "values"),
    [
        (Domain(low=0.0, high=0.3, step=0.1), [0.0, 0.1, 0.2, 0.3]),
        (Domain(low=2, high=7, step=2), [2, 4, 6]),
        (Domain(low=1, high=3), [1, 2, 3]),
        (Domain(low=0.1, high=0.2), None),
        (Domain(low=1, high=9, log=True), None),
        (Domain(["a", None]), ["a", None]),
    ],
)
def test_values_of_a_grid(domain, values):
    assert domain.grid == values if values is None else domain.grid == pytest.approx(values)


def test_lists_become_text_that_a_command_line_takes(tmp_path):
    found = search(tmp_path, "space: {model.torso.init_args.hidden_sizes: {choices: [[64, 64], [128]]}}")
    assert found.space["model.torso.init_args.hidden_sizes"].choices == ["[64, 64]", "[128]"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("a: [", r"search: .*search.yaml is no YAML: while parsing"),
        ("sampler: tpe", r"search: .*search.yaml has no `space`: the settings to vary, by name"),
        ("samplers: tpe\n" + SPACE, r"^search.samplers is unknown; search has space, .*; did you mean sampler\?$"),
        ("sampler: best\n" + SPACE, r"^search.sampler must be one of grid, random, tpe, got best$"),
        ("pruner: hard\n" + SPACE, r"^search.pruner must be one of none, median, hyperband, got hard$"),
        ("trials: 0\n" + SPACE, r"^search.trials must be a whole number from 1 on, got 0$"),
        ("seeds: true\n" + SPACE, r"^search.seeds must be a whole number from 1 on, got True$"),
        ("space: {a: 3}", r"^space.a must be \{choices: \[...\]\} or \{low: ..., high: ...\}, got 3$"),
        ("space: {a: {lo: 1, high: 2}}", r"^space.a.lo is unknown; space.a has .*; did you mean low\?$"),
        (
            "space: {a: {low: 1e-4, high: 2}}",
            r"^space.a.low must be a number, got 1e-4 \(YAML wants 1.0e-4",
        ),
        ("space: {a: {low: 1}}", r"^space.a.high must be a number, got None"),
        ("space: {a: {low: 2, high: 1}}", r"^space.a.low \(2\) must be below space.a.high \(1\)$"),
        ("space: {a: {low: 0, high: 1, log: true}}", r"^space.a.log wants a low above 0, and no step$"),
        ("space: {a: {low: 0, high: 1, step: 0}}", r"^space.a.step must be above 0, got 0$"),
        ("space: {a: {choices: [1], low: 3}}", r"^space.a.choices must be a list, and stand alone$"),
        ("space: {a: {choices: []}}", r"^space.a.choices must be a list, and stand alone$"),
        ("sampler: grid\nspace: {a: {low: 0.1, high: 0.2}}", r"^space.a: a grid needs choices, or a step between"),
    ],
)
def test_what_is_not_understood_is_named(tmp_path, text, said):
    with pytest.raises(Refusal, match=said):
        search(tmp_path, text)


def test_a_file_that_is_not_there_is_named(tmp_path):
    with pytest.raises(Refusal, match=r"search: .*none.yaml cannot be read: No such file"):
        read_search(tmp_path / "none.yaml")


def test_what_is_near():
    known = ["data.n_step", "model.optimizer.init_args.lr", "data.gamma"]
    assert closest("optimizer.lr", known) == "; did you mean model.optimizer.init_args.lr?"
    assert closest("data.nstep", known) == "; did you mean data.n_step?"
    assert closest("zzz", known) == ""

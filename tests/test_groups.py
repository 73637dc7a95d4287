"""Which runs belong together, and what their groups are called."""

import numpy as np
import pytest

from lightning_dqn.apps.command import Refusal
from lightning_dqn.apps.groups import differences, read_groups, same_environment, seeds_of_one_training
from lightning_dqn.apps.runs import read_runs
from tests.runs import make_run


def test_seeds_of_one_training_are_one_group_named_after_what_differs(tmp_path):
    for k, steps in enumerate([1, 3, 1]):
        make_run(tmp_path / f"{k}", seed=k, returns=[k, 10.0 * k], **{"data.n_step": steps})
    one, three = read_groups([str(tmp_path / f"{k}") for k in range(3)])
    assert (one.name, [run.seed for run in one.runs]) == ("n_step 1", [0, 2])
    assert (three.name, [run.seed for run in three.runs]) == ("n_step 3", [1])
    assert one.scores.tolist() == [0.0, 20.0]
    steps, returns = one.curve
    assert steps.tolist() == [100.0, 200.0]
    assert returns.tolist() == [[0.0, 0.0], [2.0, 20.0]]
    assert differences([one.runs[0], three.runs[0]]) == {"data.n_step": [1, 3]}


def test_classes_come_first_in_a_name(tmp_path):
    make_run(tmp_path / "a", **{"model.optimizer.class_path": "torch.optim.SGD", "model.optimizer.init_args.lr": 0.1})
    make_run(tmp_path / "b")
    groups = read_groups([str(tmp_path / name) for name in "ab"])
    assert [group.name for group in groups] == ["SGD, lr 0.1", "Adam, lr 0.001"]


def test_what_differs_in_much_is_called_after_its_folder(tmp_path):
    many = {"data.n_step": 5, "data.gamma": 0.9, "data.batch_size": 7}
    folders = [make_run(tmp_path / "rainbow/0", **many), make_run(tmp_path / "dqn/0")]
    assert [group.name for group in read_groups(list(map(str, folders)))] == ["rainbow", "dqn"]
    folders = [make_run(tmp_path / "all/0", **many), make_run(tmp_path / "all/1")]
    assert [group.name for group in read_groups(list(map(str, folders)))] == [
        "batch_size 7, gamma 0.9 (1)",
        "batch_size -, gamma - (2)",
    ]


def test_groups_can_be_named(tmp_path):
    for k in range(3):
        make_run(tmp_path / f"run-{k}", seed=k, **{"data.n_step": k})
    (group,) = read_groups([f"all of them={tmp_path}/run-*"])
    assert (group.name, len(group.runs)) == ("all of them", 3)


def test_a_run_that_stopped_early_shortens_the_curve_of_its_group(tmp_path):
    make_run(tmp_path / "a", seed=0, returns=[1.0, 2.0, 3.0])
    make_run(tmp_path / "b", seed=1, returns=[5.0, 6.0])
    (group,) = read_groups([str(tmp_path / "a"), str(tmp_path / "b")])
    assert group.curve[0].tolist() == [100.0, 200.0]
    assert np.array_equal(group.scores, [3.0, 6.0])
    assert group.env_steps == [300.0, 200.0]


def folders_of(arguments):
    return [[run.folder.name for run in group.runs] for group in read_groups(list(map(str, arguments)))]


def test_a_run_counts_once_however_often_it_is_given(tmp_path, capsys):
    one, other = make_run(tmp_path / "a", seed=0), make_run(tmp_path / "b", seed=1)
    assert folders_of([one, other, one, tmp_path / "b/../a"]) == [["a", "b"]]
    assert folders_of([f"x={tmp_path}/*", f"x={tmp_path}/a"]) == [["a", "b"]]
    assert capsys.readouterr().out == ""


def test_a_seed_counts_once_and_what_is_left_out_is_named(tmp_path, capsys):
    runs = {"short": (0, 1), "long": (0, 3), "shorter": (0, 2), "one": (1, 2), "again": (1, 2), "other": (2, 1)}
    folders = [make_run(tmp_path / name, seed=s, returns=[1.0] * n) for name, (s, n) in runs.items()]
    assert folders_of(folders) == [["long", "again", "other"]]
    assert capsys.readouterr().out == (
        f"left out: {tmp_path}/short (seed 0, as {tmp_path}/long), {tmp_path}/shorter (seed 0, as {tmp_path}/long), "
        f"{tmp_path}/one (seed 1, as {tmp_path}/again); of each seed the run that got furthest counts, the later on "
        "a tie\n"
    )
    assert folders_of([f"x={tmp_path}/*"]) == [["long", "one", "other"]]  # by name, one is the later


def test_seeds_count_by_training_and_with_those_of_the_data(tmp_path, capsys):
    steps = [make_run(tmp_path / f"steps/{k}", **{"data.n_step": k}) for k in (1, 3)]
    data = [make_run(tmp_path / f"data/{k}", **{"data.seed": k}) for k in (5, 6)]
    chance = [make_run(tmp_path / f"chance/{k}", seed=None) for k in (7, 8)]
    assert folders_of(steps) == [["1"], ["3"]]
    assert folders_of(data) == [["5", "6"]]
    assert folders_of(chance) == [["7", "8"]]
    assert capsys.readouterr().out == ""


def test_a_repeat_that_was_never_validated_is_in_nobodys_way(tmp_path):
    cut = make_run(tmp_path / "cut")
    (cut / "metrics.csv").write_text("env_steps,collect/return\n5,1.0\n")
    assert folders_of([cut, make_run(tmp_path / "whole")]) == [["whole"]]


def test_what_is_averaged_is_of_one_training(tmp_path, capsys):
    same = [make_run(tmp_path / f"{k}", seed=min(k, 1)) for k in range(3)]
    assert [run.folder.name for run in seeds_of_one_training(read_runs(same))] == ["0", "2"]
    assert "left out: " in capsys.readouterr().out
    other = make_run(tmp_path / "other", **{"data.n_step": 3, "model.head.class_path": "lightning_dqn.QuantileHead"})
    with pytest.raises(Refusal) as refused:
        seeds_of_one_training(read_runs([*same, other]))
    assert str(refused.value) == (
        f"run: {same[0]} and {other} are no seeds of one training: they differ in model.head.class_path and 1 more; "
        "take one training at a time, or `lightning-dqn compare`"
    )


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        ({"data.env_id": "A"}, {"data.env_id": "B"}, "data.env_id is A in .*0 and B in .*1: scores of different"),
        (
            {"data.env_kwargs": {"length": 10}},
            {"data.env_kwargs": {"length": 12}},
            r"data.env_kwargs.length is 10 .* 12 ",
        ),
        ({"data.env_kwargs": None}, {"data.env_kwargs": {"sticky": 0.25}}, r"data.env_kwargs.sticky is - .* 0.25 "),
        ({"data.wrappers": []}, {"data.wrappers": [{"class_path": "room.Half"}]}, r"data.wrappers is - .*room\.Half"),
    ],
)
def test_what_is_played_is_more_than_its_name(tmp_path, one, other, said):
    runs = read_runs([make_run(tmp_path / f"{k}", **each) for k, each in enumerate([one, other])])
    with pytest.raises(Refusal, match=rf"^run: {said}"):
        same_environment(runs)
    same_environment(runs[:1] * 2)


def test_how_it_is_shown_is_no_other_environment(tmp_path):
    shown = {"data.env_kwargs": {"render_mode": "rgb_array"}}
    same_environment(read_runs([make_run(tmp_path / "a", **shown), make_run(tmp_path / "b", **{"data.wrappers": []})]))


def test_what_cannot_be_grouped_is_refused(tmp_path):
    make_run(tmp_path / "a")
    (tmp_path / "b").mkdir()
    (tmp_path / "b/config.yaml").write_text("data: {env_id: CartPole-v1}\n")
    (tmp_path / "b/metrics.csv").write_text("env_steps,collect/return\n5,1.0\n")
    with pytest.raises(Refusal, match=r"run: .*b was never validated: there is no val/return in its metrics.csv"):
        read_groups([str(tmp_path / "a"), str(tmp_path / "b")])
    with pytest.raises(Refusal, match=r"run: no folder is named like .*none-\* \(x=.*none-\*\)"):
        read_groups([f"x={tmp_path}/none-*"])
    with pytest.raises(Refusal, match="two groups are called a"):
        read_groups([f"a={tmp_path}/a", str(make_run(tmp_path / "a/0"))])

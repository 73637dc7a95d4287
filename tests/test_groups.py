"""Which runs belong together, and what their groups are called."""

import numpy as np
import pytest

from lightning_dqn.apps.command import Refusal
from lightning_dqn.apps.groups import differences, read_groups
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

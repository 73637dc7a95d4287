"""Run folders."""

import pytest

from lightning_dqn.apps.command import Refusal
from lightning_dqn.apps.runs import flattened, folder_of_run, read_run, read_runs
from tests.runs import make_run


def test_a_seed_of_one_is_a_seed_and_true_is_none(tmp_path):
    seeds = [read_run(make_run(tmp_path / f"{seed}", seed=seed)).seed for seed in (0, 1, True, None)]
    assert seeds == [0, 1, None, None]


def test_a_run_is_its_settings_and_its_figures(tmp_path):
    run = read_run(make_run(tmp_path / "a", seed=3, returns=[1.0, 2.5]))
    assert (run.env_id, run.seed) == ("CartPole-v1", 3)
    assert run.settings["model.optimizer.init_args.lr"] == 0.001
    assert run.curve("val/return") == {100.0: 1.0, 200.0: 2.5}
    assert run.curve("val/other") == {}


def test_what_was_learned_leaves_out_seeds_and_places(tmp_path):
    one, two = (read_run(make_run(tmp_path / f"{seed}", seed=seed)) for seed in (0, 1))
    assert one.what_was_learned == two.what_was_learned
    assert one.settings != two.settings
    other = read_run(make_run(tmp_path / "b", **{"data.n_step": 3}))
    assert one.what_was_learned.items() ^ other.what_was_learned.items() == {("data.n_step", 1), ("data.n_step", 3)}


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("data.seed_every_episode", True, False),
        ("trainer.devices", 1, 2),
        ("trainer.callbacks", None, [{"class_path": "lightning.pytorch.callbacks.EMAWeightAveraging"}]),
        ("trainer.callbacks", None, {"class_path": "lightning.pytorch.callbacks.EarlyStopping"}),
        ("trainer.callbacks", None, [{"class_path": "room.LearningRateMonitor"}]),
        ("trainer.callbacks", None, "EarlyStopping"),
        ("data.env_kwargs", None, {"length": 10}),
        ("data.wrappers", [], [{"class_path": "room.Half"}]),
    ],
)
def test_what_changes_learning_counts(tmp_path, name, one, other):
    runs = [read_run(make_run(tmp_path / f"{k}", **{name: value})) for k, value in enumerate([one, other])]
    assert runs[0].what_was_learned != runs[1].what_was_learned


@pytest.mark.parametrize(
    ("name", "one", "other"),
    [
        ("data.seed", 1, 2),
        ("trainer.devices", 1, "1"),
        ("trainer.callbacks", None, []),
        ("trainer.callbacks", None, {"class_path": "lightning.pytorch.callbacks.LearningRateMonitor"}),
        (
            "trainer.callbacks",
            None,
            [{"class_path": "lightning.pytorch.callbacks.TQDMProgressBar"}, "RichModelSummary"],
        ),
        ("trainer.callbacks", None, [{"class_path": "lightning_dqn.watch.ProgressBar"}]),
        ("data.env_kwargs", None, {"render_mode": "rgb_array"}),
        ("data.wrappers", [], None),
    ],
)
def test_what_only_watches_does_not(tmp_path, name, one, other):
    runs = [read_run(make_run(tmp_path / f"{k}", **{name: value})) for k, value in enumerate([one, other])]
    assert runs[0].what_was_learned == runs[1].what_was_learned


def test_callbacks_that_count_are_settings_like_others(tmp_path):
    stopping = {"class_path": "lightning.pytorch.callbacks.EarlyStopping", "init_args": {"patience": 3}}
    bar = {"class_path": "lightning.pytorch.callbacks.TQDMProgressBar"}
    for k, given in enumerate([stopping, [stopping], [bar, stopping]]):
        learned = read_run(make_run(tmp_path / f"{k}", **{"trainer.callbacks": given})).what_was_learned
        assert {name: value for name, value in learned.items() if "callbacks" in name} == {
            "trainer.callbacks.0.class_path": "lightning.pytorch.callbacks.EarlyStopping",
            "trainer.callbacks.0.init_args.patience": 3,
        }


def test_a_run_got_as_far_as_its_last_figure(tmp_path):
    assert read_run(make_run(tmp_path / "a", returns=[1.0, 2.0])).env_steps == 200.0
    assert read_run(make_run(tmp_path / "b", returns=[])).env_steps == 0.0


def test_names_are_dotted_and_lists_are_values():
    nested = {"a": {"b": 1, "c": {"d": [{"e": 2}]}}, "f": None, "g": {}}
    assert dict(flattened(nested)) == {"a.b": 1, "a.c.d": [{"e": 2}], "f": None, "g": {}}


def test_checkpoints_are_found_and_their_run_with_them(tmp_path):
    run = read_run(make_run(tmp_path / "a"))
    with pytest.raises(Refusal, match=r"run: there is no checkpoints/best.ckpt in .*a; was it fitted without\?"):
        run.checkpoint("best")
    path = run.folder / "checkpoints" / "best.ckpt"
    path.parent.mkdir()
    path.touch()
    assert run.checkpoint("best") == path
    assert folder_of_run(path) == run.folder
    assert folder_of_run(tmp_path / "elsewhere.ckpt") is None


@pytest.mark.parametrize(
    ("text", "said"),
    [("a: [", r"config.yaml cannot be read: while parsing"), ("- a", r"config.yaml is no configuration")],
)
def test_a_broken_configuration_is_named(tmp_path, text, said):
    (tmp_path / "config.yaml").write_text(text)
    with pytest.raises(Refusal, match=said):
        read_run(tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [(b"env_steps,val/return\n\xff,1\n", "codec can't decode"), (b"env_steps,val/return\n5,x\n", "to float: 'x'")],
)
def test_figures_that_are_broken_are_named(tmp_path, text, said):
    folder = make_run(tmp_path / "a")
    (folder / "metrics.csv").write_bytes(text)
    with pytest.raises(
        Refusal, match=rf"^run: .*a/metrics.csv cannot be read: .*{said}.*; leave this run out"
    ) as refused:
        read_run(folder).curve("val/return")
    assert "\n" not in str(refused.value)


def test_a_folder_that_is_there_twice_is_read_once(tmp_path):
    folders = [make_run(tmp_path / name) for name in "ab"]
    (tmp_path / "link").symlink_to(folders[0])
    found = read_runs([*folders, tmp_path / "b/../a", tmp_path / "link"])
    assert [run.folder.resolve() for run in found] == folders


def test_folders_of_tests_are_left_out_and_named(tmp_path, capsys):
    fitted, tested = make_run(tmp_path / "a"), make_run(tmp_path / "b", returns=[])
    assert [run.folder for run in read_runs([fitted, tested])] == [fitted]
    assert capsys.readouterr().out == f"left out: {tested}, where nothing was trained\n"
    with pytest.raises(Refusal, match="nothing was trained in any of these folders"):
        read_runs([tested])
    with pytest.raises(Refusal, match="is no folder of a run"):
        read_runs([fitted, tmp_path])

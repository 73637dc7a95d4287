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


def test_folders_of_tests_are_left_out_and_named(tmp_path, capsys):
    fitted, tested = make_run(tmp_path / "a"), make_run(tmp_path / "b", returns=[])
    assert [run.folder for run in read_runs([fitted, tested])] == [fitted]
    assert capsys.readouterr().out == f"left out: {tested}, where nothing was trained\n"
    with pytest.raises(Refusal, match="nothing was trained in any of these folders"):
        read_runs([tested])
    with pytest.raises(Refusal, match="is no folder of a run"):
        read_runs([fitted, tmp_path])

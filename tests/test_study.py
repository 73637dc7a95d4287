"""Studies: how trials are drawn and shared, and what a worker that is killed costs."""

import multiprocessing
import os
import re
import signal

import pytest

from lightning_dqn.apps import study as studies
from lightning_dqn.apps.command import Refusal
from lightning_dqn.apps.space import Domain, Search
from lightning_dqn.apps.study import Plan, best_of, complete, failed, finished, open_study, work

optuna = pytest.importorskip("optuna")
FloatDistribution, IntDistribution = optuna.distributions.FloatDistribution, optuna.distributions.IntDistribution
TrialState = optuna.trial.TrialState
SPACE = {"data.n_step": Domain(low=1, high=5), "data.gamma": Domain(low=0.5, high=0.9)}


def read(args):
    return {name: float(value) for name, _, value in (arg.removeprefix("--").partition("=") for arg in args)}


def score(args, folder, seed, report):
    """Best at 3 steps; known at once."""
    values = read(args)
    result = 10 - abs(values["data.n_step"] - 3) + values.get("data.gamma", 0) / 10 + seed
    report(result)
    return result, True


@pytest.fixture
def plan(tmp_path, monkeypatch):
    """Makes a plan whose runs take no time."""
    monkeypatch.setattr(studies, "fit", score)

    def make(folder="study", grace=60, **search):
        return Plan(tmp_path / folder, [], Search(**{"space": SPACE, "pruner": "none", "trials": 4} | search), grace)

    return make


def values_of(study):
    return [trial.params for trial in study.trials]


def test_a_trial_is_the_mean_of_its_seeds(plan, capsys):
    work(plan(seeds=3))
    study = open_study(plan(seeds=3))
    best = best_of(study)
    assert len(finished(study)) == 4
    assert best.values[0] == max(trial.values[0] for trial in study.trials)
    expected = 10 - abs(best.params["data.n_step"] - 3) + best.params["data.gamma"] / 10 + (0 + 1 + 2) / 3
    assert best.values[0] == pytest.approx(expected)
    assert "; 4 of 4\n" in capsys.readouterr().out


@pytest.mark.parametrize("sampler", ["random", pytest.param("tpe", marks=pytest.mark.slow)])
def test_a_search_that_goes_on_draws_what_it_would_have_drawn(plan, sampler):
    work(plan("whole", sampler=sampler, trials=4))
    work(plan("parts", sampler=sampler, trials=2))
    work(plan("parts", sampler=sampler, trials=4))
    whole, parts = open_study(plan("whole")), open_study(plan("parts"))
    assert values_of(whole) == values_of(parts)
    assert len({trial["data.gamma"] for trial in values_of(whole)}) == 4
    work(plan("parts", sampler=sampler, trials=4))  # nothing is left to do
    assert len(open_study(plan("parts")).trials) == 4


def test_a_grid_is_run_once_each(plan):
    space = {"data.n_step": Domain([1, 2]), "data.gamma": Domain(low=0.5, high=0.6, step=0.1)}
    work(plan(sampler="grid", trials=None, space=space))
    found = values_of(open_study(plan(space=space)))
    assert len(found) == 4
    assert {(trial["data.n_step"], round(trial["data.gamma"], 1)) for trial in found} == {
        (steps, gamma) for steps in (1, 2) for gamma in (0.5, 0.6)
    }


@pytest.mark.parametrize("pruner", ["median", pytest.param("hyperband", marks=pytest.mark.slow)])
def test_hopeless_trials_are_pruned_at_a_validation(plan, monkeypatch, pruner):
    def in_steps(args, folder, seed, report):
        quality = read(args)["data.gamma"]
        for k in range(4):
            if not report(quality * (k + 1)):
                return quality, False
        return quality * 4, True

    monkeypatch.setattr(studies, "fit", in_steps)
    work(plan(pruner=pruner, trials=10, sampler="random"))
    study = open_study(plan())
    pruned = [trial for trial in study.trials if trial.state.name == "PRUNED"]
    assert 0 < len(pruned) < 10
    assert all(len(trial.intermediate_values) < 4 for trial in pruned)
    assert len(complete(study)) == 10 - len(pruned)
    assert best_of(study).params["data.gamma"] == max(trial["data.gamma"] for trial in values_of(study))


def test_validations_are_counted_on_over_the_seeds(plan, monkeypatch):
    def twice(args, folder, seed, report):
        report(1.0 + seed)
        report(3.0 + seed)
        return 3.0 + seed, True

    monkeypatch.setattr(studies, "fit", twice)
    work(plan(seeds=2, trials=1))
    (trial,) = open_study(plan(seeds=2)).trials
    # of the second seed, with what the first has come to: (3 + 2) / 2 and (3 + 4) / 2
    assert trial.intermediate_values == {1: 1.0, 2: 3.0, 3: 2.5, 4: 3.5}
    assert trial.user_attrs["scores"] == [3.0, 4.0]


def test_settings_that_fail_are_named_and_count(plan, monkeypatch, capsys):
    def fails_at_one(args, folder, seed, report):
        if read(args)["data.n_step"] != 3:
            raise ValueError("data.n_step: not this one\nat all")
        return score(args, folder, seed, report)

    monkeypatch.setattr(studies, "fit", fails_at_one)
    work(plan(trials=4, sampler="random"))
    study = open_study(plan())
    errors = {trial.user_attrs.get("error") for trial in study.trials if trial.state.name == "FAIL"}
    assert errors == {"ValueError: data.n_step: not this one"}
    assert len(finished(study)) == len(study.trials) == 4
    assert "ValueError: data.n_step: not this one (n_step" in capsys.readouterr().out


def interrupted(*args):
    raise KeyboardInterrupt


def interrupt(plan, monkeypatch, where="fit", by=interrupted):
    """Works until something in the study is interrupted."""
    with monkeypatch.context() as patched:
        patched.setattr(studies, where, by)
        with pytest.raises(KeyboardInterrupt):
            work(plan)


def settings_of(study):
    return [trial.params for trial in finished(study)]


def add(study, params, **attributes):
    """A trial of somebody else."""
    distributions = {"data.n_step": IntDistribution(1, 5), "data.gamma": FloatDistribution(0.5, 0.9)}
    study.add_trial(optuna.create_trial(params=params, distributions=distributions, **attributes))


def test_an_interrupted_trial_is_run_again(plan, monkeypatch):
    interrupt(plan(), monkeypatch)
    work(plan())
    study = open_study(plan())
    assert [trial.state.name for trial in study.trials] == ["FAIL"] + ["COMPLETE"] * 4
    assert values_of(study)[0] == values_of(study)[1]
    assert len(finished(study)) == 4


def test_an_interrupted_trial_is_run_again_and_not_a_later_one_that_failed(plan, monkeypatch):
    another = {"data.n_step": 1, "data.gamma": 0.5}

    def interrupted_after_another_failed(args, folder, seed, report):
        attributes = {"begun": 1, "error": "ValueError: not this one"}
        add(open_study(plan()), another, state=TrialState.FAIL, user_attrs=attributes)
        raise KeyboardInterrupt

    interrupt(plan(), monkeypatch, by=interrupted_after_another_failed)
    trials = open_study(plan()).trials
    assert [trial.state.name for trial in trials] == ["FAIL", "FAIL", "WAITING"]
    assert trials[2].params == trials[0].params != another
    assert "error" not in trials[2].user_attrs
    work(plan())
    study = open_study(plan())
    assert settings_of(study)[:2] == [another, trials[0].params]
    assert len(finished(study)) == 4


def test_an_interruption_after_a_trial_queues_none_again(plan, monkeypatch):
    interrupt(plan(), monkeypatch, where="_say")
    assert [trial.state.name for trial in open_study(plan()).trials] == ["COMPLETE"]


def test_a_random_search_is_the_same_however_often_it_was_interrupted(plan, monkeypatch):
    def half_drawn(trial, name, domain):
        return interrupted() if name == "data.gamma" else suggest(trial, name, domain)

    suggest = studies._suggest
    work(plan("whole", sampler="random"))
    for trials in range(1, 5):
        for where, by in (("_suggest", half_drawn), ("fit", interrupted), ("_suggest", interrupted)):
            interrupt(plan("parts", sampler="random", trials=trials), monkeypatch, where, by)
        work(plan("parts", sampler="random", trials=trials))
    whole, parts = open_study(plan("whole")), open_study(plan("parts"))
    assert settings_of(whole) == settings_of(parts)
    assert len(parts.trials) > len(whole.trials) == 4


def test_a_queued_trial_whose_worker_dies_before_it_begins_stays_queued(plan, monkeypatch):
    interrupt(plan(), monkeypatch)
    with pytest.warns(UserWarning, match="Heartbeat"):
        open_study(plan()).ask()
    work(plan())
    study = open_study(plan())
    assert [trial.state.name for trial in study.trials] == ["FAIL"] * 2 + ["COMPLETE"] * 4
    assert values_of(study)[0] == values_of(study)[2]


def test_a_point_of_a_grid_whose_worker_dies_before_it_begins_is_run(plan, monkeypatch):
    space = {"data.n_step": Domain([1, 2, 3, 4])}
    search = plan(sampler="grid", trials=None, space=space)
    interrupt(search, monkeypatch, "_suggest")
    study = open_study(search)
    study.sampler = optuna.samplers.GridSampler(search.search.grid, seed=0)
    with pytest.warns(UserWarning, match="Heartbeat"):
        study.ask(), study.ask()  # the queued one, and a new one
    work(search)
    assert sorted(each["data.n_step"] for each in settings_of(open_study(search))) == [1, 2, 3, 4]


def test_settings_that_failed_are_not_run_again_where_their_worker_is_interrupted(plan, monkeypatch):
    def fails(args, folder, seed, report):
        raise ValueError

    def note(trial, name, value):
        set_attribute(trial, name, value)
        if name == "error":
            raise KeyboardInterrupt

    set_attribute = optuna.Trial.set_user_attr
    monkeypatch.setattr(optuna.Trial, "set_user_attr", note)
    interrupt(plan(), monkeypatch, by=fails)
    assert [trial.state.name for trial in open_study(plan()).trials] == ["FAIL"]
    work(plan())
    study = open_study(plan())
    assert [trial.state.name for trial in study.trials] == ["FAIL"] + ["COMPLETE"] * 3
    assert len(finished(study)) == 4


def test_a_trial_that_waits_has_not_failed(plan):
    study = open_study(plan())
    params = {"data.n_step": 1, "data.gamma": 0.5}
    for state in (TrialState.FAIL, TrialState.WAITING):
        add(study, params, state=state, user_attrs={"error": "ValueError"})
    assert [trial.number for trial in finished(study)] == [trial.number for trial in failed(study)] == [0]


def _work_and_die(plan):
    trials = iter(range(9))

    def dies_in_the_second(args, folder, seed, report):
        if next(trials) == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        return score(args, folder, seed, report)

    studies.fit = dies_in_the_second
    work(plan)


def test_a_worker_that_is_killed_costs_no_finished_trial_and_its_own_is_run_again(plan):
    process = multiprocessing.get_context("fork").Process(target=_work_and_die, args=(plan(grace=2),))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    before = open_study(plan(grace=2)).trials
    assert [trial.state.name for trial in before] == ["COMPLETE", "RUNNING"]
    work(plan(grace=2))
    after = open_study(plan(grace=2)).trials
    assert after[0] == before[0]
    assert after[1].state.name == "FAIL"
    again = [trial for trial in after[2:] if trial.params == before[1].params]
    assert [trial.state.name for trial in again] == ["COMPLETE"]
    assert [trial.state.name for trial in after].count("COMPLETE") == 4


def test_a_trial_that_died_before_its_first_heartbeat_is_not_waited_for(plan):
    with pytest.warns(UserWarning, match="Heartbeat"):
        open_study(plan()).ask()
    work(plan())
    assert [trial.state.name for trial in open_study(plan()).trials] == ["FAIL"] + ["COMPLETE"] * 4


def test_a_file_that_is_no_study_is_named_and_left_alone(plan, tmp_path):
    folder = tmp_path / "study"
    folder.mkdir()
    for content in (b"no database at all, but a long text", b"SQLite format 3\x00" + bytes(50)):
        (folder / "study.db").write_bytes(content)
        with pytest.raises(Refusal, match=r"^study: .*study.db .*; move it away, or choose another folder"):
            open_study(plan())
        assert (folder / "study.db").read_bytes() == content


@pytest.mark.parametrize(("folder", "reason"), [("taken", "File exists"), ("taken/study", "Not a directory")])
def test_a_folder_that_cannot_be_one_is_named_and_what_is_there_left_alone(plan, tmp_path, folder, reason):
    (tmp_path / "taken").write_text("of somebody")
    said = rf"^--output: .*{folder} cannot be a folder \({reason}\); move it away, or choose another folder by --output"
    with pytest.raises(Refusal, match=said):
        open_study(plan(folder))
    assert (tmp_path / "taken").read_text() == "of somebody"


def test_a_folder_that_nothing_can_be_written_to_is_one_line(plan, tmp_path):
    for name in ("study.db.lock", "study.db"):  # folders, as good as files of somebody else's
        (tmp_path / "study" / name).mkdir(parents=True)
        with pytest.raises(
            Refusal, match=rf"^study: .*study\.db cannot be read \(.*{re.escape(name)}'\); move it away"
        ):
            open_study(plan())


def test_a_study_of_another_search_is_refused(plan):
    open_study(plan())
    with pytest.raises(Refusal, match=r"study.db is of another search \(its space is not this one's\)"):
        open_study(plan(space={"data.n_step": Domain([1])}))
    with pytest.raises(Refusal, match=r"study.db is of another search \(its seeds is not this one's\)"):
        open_study(plan(seeds=5))


def test_studies_of_several_folders_share_a_database(plan, tmp_path):
    shared = f"sqlite:///{tmp_path}/shared.db"
    for folder in ("first", "second"):
        work(plan(folder, trials=2)._replace(storage=shared))
    first = open_study(plan("first")._replace(storage=shared))
    assert len(first.trials) == 2
    assert not (tmp_path / "first/study.db").exists()


def test_a_database_that_is_not_there_is_one_line_without_its_password(plan):
    with pytest.raises(Refusal, match=r"^study: the database of --storage cannot be read \(") as refused:
        open_study(plan()._replace(storage="mysql+nothing://me:secret@localhost/none"))
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)

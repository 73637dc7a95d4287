import pytest
import yaml

from lightning_dqn.shipped import find_config, resolve_config_names, shipped_configs


def test_bare_names_become_paths_and_paths_stay(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("data: {gamma: 0.5}\n")
    resolved = resolve_config_names(
        ["fit", "--config", "cartpole", f"--config={mine}", "-c", "dueling", "--x=cartpole"]
    )
    assert resolved[2] == str(shipped_configs()["cartpole"])
    assert resolved[3] == f"--config={mine}"
    assert resolved[5] == str(shipped_configs()["dueling"])
    assert resolved[6] == "--x=cartpole"


def test_an_unknown_name_lists_the_shipped_ones():
    with pytest.raises(ValueError, match=r"config: 'cartpool' is neither a file nor one of the shipped .*cartpole"):
        find_config("cartpool")


def test_a_path_is_taken_before_a_shipped_name(tmp_path):
    assert find_config("cartpole") == str(shipped_configs()["cartpole"])
    (tmp_path / "cartpole").write_text("{}")
    assert find_config("cartpole") == "cartpole"


def test_what_is_searched_and_what_is_fitted_are_told_apart():
    fitted, searched = shipped_configs(), shipped_configs("search")
    assert {"cartpole", "rainbow", "tutorial"} <= set(fitted)
    assert {"cartpole", "cartpole_sweep"} == set(searched)
    assert fitted["cartpole"] != searched["cartpole"]
    for path in [*fitted.values(), *searched.values()]:
        assert isinstance(yaml.safe_load(path.read_text()), dict)

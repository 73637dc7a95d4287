import warnings

import pytest

from lightning_dqn.forgiving import Forgiving


def test_the_first_error_is_a_warning_and_the_second_nothing():
    forgiving = Forgiving("No picture", "Do this.")
    with pytest.warns(UserWarning, match=r"^No picture, and training goes on: OSError: full\. Do this\.$"), forgiving:
        raise OSError("full")
    with warnings.catch_warnings(), forgiving:
        warnings.simplefilter("error")
        raise OSError("full")


@pytest.mark.parametrize("end", [KeyboardInterrupt, SystemExit])
def test_the_end_of_the_process_is_no_error(end):
    with pytest.raises(end), Forgiving("No picture", ""):
        raise end


def test_without_an_error_nothing_is_said():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with Forgiving("No picture", ""):
            pass

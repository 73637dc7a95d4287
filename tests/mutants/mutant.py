"""What a mutant is: one small mistake, put into one file of the package."""

from typing import NamedTuple


class Mutant(NamedTuple):
    """A known mistake as a change of our code, and the tests that must notice it.

    Attributes:
        id: Class letter and number of the mistake; mistakes that can be made in several ways have a letter more.
        mistake: What goes wrong, in one line.
        file: The path in the package of the module that is changed, without ``.py``.
        old: Text that stands exactly once in that file.
        new: What stands there instead.
        killers: Tests of which at least one must fail, the quickest first: ``replay::test_name[parameters]`` is in
            ``tests/test_replay.py``. Without parameters it is the test with all of them.
        hangs: Whether a test that never ends is how it shows.
    """

    id: str
    mistake: str
    file: str
    old: str
    new: str
    killers: tuple[str, ...]
    hangs: bool = False

    @property
    def nodes(self) -> tuple[str, ...]:
        """The killers as pytest is given them."""
        return tuple("tests/test_{}.py::{}".format(*killer.split("::", 1)) for killer in self.killers)

    def apply(self, source: str) -> str:
        """The file's text with the mistake in it."""
        if source.count(self.old) != 1:
            raise ValueError(
                f"{self.id}: its old text stands {source.count(self.old)} times in {self.file}.py, not once"
            )
        return source.replace(self.old, self.new)

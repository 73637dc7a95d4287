"""``python -m tests.mutants``: all mutants, or those of an id (``D1a``), a number (``D1``) or a class (``D``)."""

import argparse
import string
import sys

from tests.mutants import MUTANTS
from tests.mutants.runner import PACKAGE, main

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("ids", nargs="*", metavar="ID")
    parser.add_argument("--jobs", type=int, default=2, help="how many at a time (%(default)s)")
    parser.add_argument("--timeout", type=float, default=120.0, help="seconds for each (%(default)s)")
    parser.add_argument("--verbose", action="store_true", help="say how each was noticed")
    arguments = parser.parse_args()
    asked = set(arguments.ids)
    names = {mutant: {mutant.id, mutant.id.rstrip(string.ascii_lowercase), mutant.id[0]} for mutant in MUTANTS}
    chosen = [mutant for mutant in MUTANTS if not asked or asked & names[mutant]]
    unknown = asked - set().union(*names.values())
    if unknown:
        parser.error(f"no mutant is called {', '.join(sorted(unknown))}")
    sys.exit(main(PACKAGE, chosen, arguments.jobs, arguments.timeout, arguments.verbose))

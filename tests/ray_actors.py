"""What Ray's worker processes import for the tests: next to nothing, so that they start quickly."""

import os
import signal
import time


class Echo:
    """Says what it is told, after a while."""

    def __init__(self, index, incarnation, fails=False):
        self.name = index, incarnation
        self.said = 0
        if fails:
            raise OSError("no licence")

    def say(self, word, seconds=0.0):
        time.sleep(seconds)
        self.said += 1
        return *self.name, word

    def count(self):
        return self.said

    def fail(self):
        raise ValueError("data.env_id: broken")

    def end(self):
        os.kill(os.getpid(), signal.SIGKILL)

"""What processes of a benchmark do in its tests."""

import os
import sys
import time

from llmpy import UserError


def counting(to, pause=0.0, then=None):
    for number in range(to):
        yield {"number": number}
        time.sleep(pause)
    if then == "user":
        raise UserError("no room")
    if then == "error":
        raise ValueError("broken\nin two lines")
    if then == "exit":
        print("last words", file=sys.stderr, flush=True)
        os._exit(7)

"""Rewards that a process of their own must survive. Imported by workers: no pytest here."""

from __future__ import annotations

import os
import time

from plaudit.rewards.base import card

print('{"port": 1}', flush=True)  # libraries that talk when they are imported must not be taken for the worker


@card(kind="text", low=0, high=1e9, revision="7")
def odd(prompts, outputs):
    """The number that the text is; `crash` ends the process, `hang` never returns, `print` and `pid` do what they say."""
    scores = []
    for text in outputs:
        if text == "crash":
            os._exit(9)
        if text == "hang":
            time.sleep(60)
        if text == "print":
            print('{"port": 1}', flush=True)
        scores.append(float(os.getpid() if text == "pid" else len(text)))
    return scores

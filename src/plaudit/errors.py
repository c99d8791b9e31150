"""User-facing errors. Each names the key or row, the value seen, what is allowed and the next step."""

import traceback
from pathlib import Path


class PlauditError(Exception):
    """Base of every error that is the user's to mend; the CLI prints its message and no traceback."""


class RecipeError(PlauditError):
    """A recipe asks for something that does not exist or cannot be combined."""


class DataError(PlauditError):
    """A prompt, record or file is not what it should be."""


class RewardError(PlauditError):
    """A reward failed, or too many of its scores are missing."""


class SandboxError(RewardError):
    """An untrusted program cannot be run here, or not safely; none was."""


class RunError(PlauditError):
    """A run cannot start, continue or be written."""


class Interrupted(PlauditError):
    """The user stopped the work; the message says what was saved and how to go on."""


def first_line(error: BaseException) -> str:
    """What it says, in one line, and where it was raised."""
    said = " ".join(str(error).split()) or "no message"
    frame = traceback.extract_tb(error.__traceback__)[-1:]
    where = f" ({Path(frame[0].filename).name}:{frame[0].lineno})" if frame else ""
    return f"{type(error).__name__}: {said[:300]}{where}"

"""Libraries that only some features need."""

from __future__ import annotations

import importlib
from types import ModuleType

from plaudit.errors import RecipeError


def require(module: str, *, extra: str, who: str) -> ModuleType:
    """The module, or an error that says what to install. `who` is the feature that needs it, as the user wrote it."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != module.partition(".")[0]:
            raise
        raise RecipeError(f"{who} needs {module}, which is not installed: pip install 'plaudit[{extra}]'") from error

"""Plaudit turns a reward into a better generative model. Importing it imports no torch: names load when first used."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from plaudit.audit.compare_runs import compare
    from plaudit.data.prompt import Prompt
    from plaudit.recipe.load import load
    from plaudit.recipe.schema import Recipe
    from plaudit.rewards.base import Score
    from plaudit.rewards.scoring import score
    from plaudit.search.api import search
    from plaudit.train.doctor.doctor import doctor
    from plaudit.train.preview import sample
    from plaudit.verbs import align, fit

from plaudit.version import __version__

__all__ = [
    "Prompt",
    "Recipe",
    "Score",
    "__version__",
    "align",
    "compare",
    "doctor",
    "fit",
    "load",
    "sample",
    "score",
    "search",
]

HOMES = {
    "align": "plaudit.verbs",
    "compare": "plaudit.audit.compare_runs",
    "doctor": "plaudit.train.doctor.doctor",
    "fit": "plaudit.verbs",
    "load": "plaudit.recipe.load",
    "sample": "plaudit.train.preview",
    "score": "plaudit.rewards.scoring",
    "search": "plaudit.search",  # the package itself is what is called
    "Recipe": "plaudit.recipe.schema",
    "Prompt": "plaudit.data.prompt",
    "Score": "plaudit.rewards.base",
}


def __getattr__(name: str) -> Any:
    if name not in HOMES:
        raise AttributeError(f"module 'plaudit' has no attribute {name!r}; it has {', '.join(sorted(HOMES))}")
    home = importlib.import_module(HOMES[name])
    value = home if home.__name__ == f"{__name__}.{name}" else getattr(home, name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *HOMES})

"""Better outputs without training. `plaudit.search(model, reward, budget="200nfe")` calls `plaudit.search.api.search`.

The package itself is callable, because importing any of its modules binds the name `plaudit.search` to it.
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any


class _Callable(ModuleType):
    def __call__(self, *args: Any, **keywords: Any) -> Any:
        from plaudit.search.api import search

        return search(*args, **keywords)


sys.modules[__name__].__class__ = _Callable

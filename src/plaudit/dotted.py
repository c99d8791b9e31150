"""Things by their dotted path, so that users extend Plaudit without a registry."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Iterable
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from plaudit.errors import RecipeError


def import_dotted(path: str, key: str, built_in: Iterable[str] = ()) -> Any:
    """The thing at `package.module:thing`; modules of the current folder are found as in `python -m`."""
    module_name, colon, attribute = path.partition(":")
    listed = sorted(built_in)
    few = f"built in: {', '.join(listed)}" if len(listed) <= 12 else "`plaudit rewards list` names what is built in"
    near = get_close_matches(path, list(built_in), n=1)
    names = f"; did you mean {near[0]}?" if near else f"; {few}" if listed else ""
    if not colon:
        raise RecipeError(f"{key}: {path!r} is not a dotted path `package.module:thing`{names}")
    if str(Path.cwd()) not in sys.path:
        sys.path.append(str(Path.cwd()))
    try:
        return functools.reduce(getattr, attribute.split("."), importlib.import_module(module_name))
    except (ImportError, AttributeError) as error:
        raise RecipeError(
            f"{key}: cannot import {path!r}: {error}; check the path and that its folder is importable"
        ) from error
    except (Exception, SystemExit) as error:  # the user's module may raise anything while it is read
        raise RecipeError(f"{key}: reading {module_name} raised {type(error).__name__}: {error}") from error

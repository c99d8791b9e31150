"""Things by their dotted path, so that users extend Plaudit without a registry."""

from __future__ import annotations

import functools
import importlib
import sys
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from plaudit.errors import PlauditError, RecipeError, first_line


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


def made(path: str, key: str, options_key: str, options: Mapping[str, Any]) -> Any:
    """What the thing at a dotted path makes of its options. Whatever it raises is one line."""
    thing = import_dotted(path, key)
    try:
        return thing(**options)
    except PlauditError:
        raise
    except (Exception, SystemExit) as error:  # the user's own code may raise anything
        given = f"with {options_key} {', '.join(options)}" if options else "without arguments"
        raise RecipeError(
            f"{key}: {path}, called {given}, raised {first_line(error)}; mend it, or {options_key}"
        ) from error

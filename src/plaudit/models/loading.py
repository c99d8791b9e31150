"""Pretrained weights through transformers and diffusers: safetensors alone, every tensor in its place, and no noise."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from plaudit.errors import RecipeError

CONVERT = (
    "from transformers import AutoModelForCausalLM as Model; "
    "Model.from_pretrained(FOLDER, use_safetensors=False).save_pretrained(NEW)"
)
PROBLEMS = {"missing_keys": "lack", "unexpected_keys": "have beside it", "mismatched_keys": "have in another shape"}


def pretrained(cls: Any, path: str, *, key: str = "model.path", **arguments: Any) -> Any:
    """`cls.from_pretrained(path)`, refused where a tensor would be random, left out or cut. `key` is what names the path."""
    strict = {
        "use_safetensors": True,
        "output_loading_info": True,
        "ignore_mismatched_sizes": True,
    }  # to name all of them
    model, info = cls.from_pretrained(path, **strict, **arguments)
    where = "/".join(filter(None, (path, arguments.get("subfolder"))))
    for name, what in PROBLEMS.items():
        if found := sorted(key if isinstance(key, str) else key[0] for key in info.get(name, ())):
            few = f"{', '.join(found[:3])}{', ...' if len(found) > 3 else ''}"
            raise RecipeError(
                f"{key}: the weights in {where!r} {what} {len(found)} tensors of a {type(model).__name__} ({few}); "
                "give a complete folder of this architecture: save it again with save_pretrained"
            )
    return model


def components(pipeline: Any, path: str, dtype: Any) -> dict[str, Any]:
    """The networks that a pipeline's index names, each loaded by itself: a pipeline does not say what its parts lacked."""
    import diffusers
    import transformers
    from torch import nn

    found = {}
    for name, entry in pipeline.load_config(path).items():
        library, kind = entry if isinstance(entry, list | tuple) and len(entry) == 2 else (None, None)
        cls = getattr({"diffusers": diffusers, "transformers": transformers}.get(library), str(kind), None)
        if isinstance(cls, type) and issubclass(cls, nn.Module):
            found[name] = pretrained(cls, path, subfolder=name, dtype=dtype)
    return found


def must_be_there(path: str) -> None:
    """A folder, or a name that the hub knows: a mistyped folder is not asked for again and again."""
    place = Path(path).expanduser()
    meant = path.startswith((".", "/", "~")) or path.count("/") > 1 or ("/" in path and place.parent.is_dir())
    if place.exists():
        return
    if meant or not _hub_has(path):
        raise RecipeError(
            f"model.path: {path!r} does not exist; give a folder that does, or a hub name `owner/model` (hub names are looked "
            "up over the network; private ones need `hf auth login`)"
        )


def _hub_has(name: str) -> bool:
    """Asked once, where transformers and diffusers try five times for each file; or what was downloaded before."""
    from huggingface_hub import model_info, try_to_load_from_cache
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, RepositoryNotFoundError

    try:
        if any(isinstance(try_to_load_from_cache(name, file), str) for file in ("config.json", "model_index.json")):
            return True
        model_info(name, timeout=10)
    except (RepositoryNotFoundError, HFValidationError, ConnectionError):
        return False
    except HfHubHTTPError:  # a mirror that only has files, or a hub out of order: loading will say
        return True
    except HTTPError:  # no answer, by whichever library the hub's client asks with
        return False
    return True


def without_safetensors(path: str) -> str:
    """What to add where a folder has weights in pickles only."""
    folder = Path(path)
    pickles = sorted(folder.rglob("*.bin")) if folder.is_dir() and not any(folder.rglob("*.safetensors")) else []
    if not pickles:
        return ""
    return f"; {pickles[0].name} is a pickle, and none is read: convert it where you trust it, with `{CONVERT}`"


@contextmanager
def quiet() -> Iterator[None]:
    """No bars of loading and no advice in the log; errors, and bars of a download, are shown."""
    from transformers.utils import logging as transformers_logging

    loggers = [transformers_logging]
    try:
        from diffusers.utils import logging as diffusers_logging
    except ImportError:  # token models need none
        pass
    else:
        loggers.append(diffusers_logging)
    before = [(logger, logger.get_verbosity(), logger.is_progress_bar_enabled()) for logger in loggers]
    for logger in loggers:
        logger.set_verbosity_error()
        logger.disable_progress_bar()
    try:
        yield
    finally:
        for logger, verbosity, bars in before:
            logger.set_verbosity(verbosity)
            if bars:
                logger.enable_progress_bar()

"""`rewards.yaml`: which rewards are served, and how. Importing this file imports no torch and no web server."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, ValidationError, model_validator

from plaudit.errors import RecipeError
from plaudit.optional import require
from plaudit.recipe.base import NotNegative, Positive, PositiveFloat, Strict
from plaudit.recipe.explain import explain
from plaudit.recipe.rewards import RewardConfig
from plaudit.recipe.text import possible, read, visible

NOT_SERVED = ("weight", "calibrate")  # what a score counts is the recipe's to say
MIB = 2**20


def is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


class ServeConfig(Strict):
    """Where the service listens and what it accepts. Megabytes are 2^20 bytes."""

    host: str = "127.0.0.1"
    port: Annotated[int, Field(ge=0, le=65535)] = 8000
    token_env: str | None = None  # the environment variable with the bearer token; needed beyond loopback
    max_batch: Positive = 256  # outputs scored together, of any number of requests
    max_wait_ms: NotNegative = 2.0  # how long a batch waits for requests that are still arriving
    max_queue: Positive = 4096  # outputs waiting for one reward
    max_requests: Positive = 64  # requests held at once
    max_items: Positive = 4096  # outputs in one request
    max_request_mb: PositiveFloat = 64.0
    max_media_mb: PositiveFloat = 256.0  # of one request, decoded
    media_cache_mb: NotNegative = 256.0  # media kept, to be named by hash
    max_keys: Positive = 1024  # answers kept for repeats with the same idempotency key
    answers_mb: NotNegative = 64.0  # of those answers
    deadline_s: PositiveFloat = 600.0  # of requests that bring none
    header_s: PositiveFloat = 10.0  # for a request's head to arrive
    body_s: PositiveFloat = 60.0  # for its body
    drain_s: NotNegative = 30.0  # for work in hand to be finished when the service is told to stop

    @model_validator(mode="after")
    def _possible(self) -> ServeConfig:
        if not is_loopback(self.host) and self.token_env is None:
            raise ValueError(
                f"serve.host: {self.host} can be reached from other machines; name the environment variable that holds a "
                "secret token in serve.token_env, or use 127.0.0.1"
            )
        if self.max_items > self.max_queue:
            raise ValueError(
                f"serve.max_items: {self.max_items} outputs of one request never fit into serve.max_queue {self.max_queue}"
            )
        return self


class ServeFile(Strict):
    """All of `rewards.yaml`."""

    rewards: dict[str, RewardConfig] = Field(min_length=1)
    serve: ServeConfig = ServeConfig()

    @model_validator(mode="after")
    def _only_scores(self) -> ServeFile:
        for name, config in self.rewards.items():
            for key in NOT_SERVED:
                if key in config.model_fields_set:
                    raise ValueError(f"rewards.{name}.{key}: a service returns raw scores; put `{key}` into the recipe")
        return self


def need_web_server() -> None:
    for module in ("fastapi", "uvicorn", "httptools"):
        require(module, extra="serve", who="a reward service")


def token_of(config: ServeConfig) -> str | None:
    """The bearer token that clients must show; None where none is asked for."""
    if config.token_env is None:
        return None
    token = os.environ.get(config.token_env, "").strip()
    if not token:
        raise RecipeError(f"serve.token_env: the environment variable {config.token_env} is not set or empty")
    return token


def read_file(path: Path) -> ServeFile:
    return read_mapping(read(path), visible(str(path)))


def read_mapping(content: Any, label: str) -> ServeFile:
    """`rewards: {quality: scene_match}` is short for `rewards: {quality: {type: scene_match}}`."""
    if not isinstance(content, Mapping):
        raise RecipeError(f"{label}: the top level must be keys, for example `rewards: {{quality: scene_match}}`")
    document = dict(possible(content, label))
    if isinstance(document.get("rewards"), Mapping):
        document["rewards"] = {
            name: {"type": value} if isinstance(value, str) else value for name, value in document["rewards"].items()
        }
    try:
        return ServeFile.model_validate(document)
    except ValidationError as error:
        lines = explain(error, document, schema=ServeFile).splitlines()
        raise RecipeError("\n".join(f"{label}: {line}" for line in lines)) from None


def with_address(file: ServeFile, host: str | None, port: int | None) -> ServeFile:
    """The file with another host or port, checked anew."""
    given = {key: value for key, value in (("host", host), ("port", port)) if value is not None}
    document = file.model_dump(exclude_unset=True)
    document["serve"] = {**document.get("serve", {}), **given}
    return read_mapping(document, "the command line")

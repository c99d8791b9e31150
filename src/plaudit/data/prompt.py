"""What a generator is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One request: text, optional conditioning inputs, and machine-checkable facts for verifiers."""

    id: str
    text: str
    inputs: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


def is_conversation(value: Any) -> bool:
    """A list of messages as chat templates take them."""
    return isinstance(value, list) and bool(value) and all(isinstance(m, dict) and "content" in m for m in value)


def text_of(value: Any) -> str:
    """A text itself, or what the last message of a conversation says."""
    if isinstance(value, str):
        return value
    if not is_conversation(value):
        raise ValueError(f"{str(value)[:80]} is neither a text nor a list of messages with `content`")
    content = value[-1]["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)

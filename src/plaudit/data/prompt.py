"""What a generator is asked for."""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from plaudit.errors import DataError


@dataclass(frozen=True, kw_only=True)
class Prompt:
    """One request: text, optional conditioning inputs, and machine-checkable facts for verifiers."""

    id: str
    text: str
    inputs: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)

    @functools.cached_property
    def key(self) -> str:
        """What a model makes of a prompt is kept by: a digest of id, text and media. Two pictures under one text are two prompts;
        what has no content that is known here is told apart by being another object."""
        if not self.inputs:
            return f"{self.id}\0{self.text}"
        from plaudit.data.content import media_hash

        try:
            return media_hash([self.id, self.text, self.inputs]).hex()
        except TypeError:
            return f"{self.id}\0{self.text}\0{id(self.inputs)}"


def is_conversation(value: Any) -> bool:
    """A list of messages as chat templates take them."""
    return isinstance(value, list) and bool(value) and all(map(_is_message, value))


def _is_message(value: Any) -> bool:
    """`content` is a text or a list of parts; it may be null only beside calls of tools."""
    if not isinstance(value, dict) or "content" not in value or not isinstance(value.get("role", ""), str):
        return False
    content = value["content"]
    if isinstance(content, list):
        return all(isinstance(part, dict) for part in content)
    return isinstance(content, str) or (content is None and bool(value.get("tool_calls")))


def must_be_text(conversation: Any, where: str) -> None:
    """Refuse messages with pictures, sound or whatever else is no text: no model reads them yet."""
    for number, message in enumerate(conversation, start=1):
        parts = message["content"] if isinstance(message["content"], list) else []
        for part in parts:
            if part.get("type", "text") != "text" or not isinstance(part.get("text"), str):
                kind = str(part.get("type", sorted(part, key=str)))[:60]
                raise DataError(
                    f"{where}: message {number} has a part {kind!r}; conversations are read as text alone, so give parts "
                    "of type text, or `content` as one text"
                )


def text_of(value: Any) -> str:
    """A text itself, or what the last message of a conversation says."""
    if isinstance(value, str):
        return value
    if not is_conversation(value):
        raise ValueError(f"{str(value)[:80]} is neither a text nor a list of messages with `content`")
    content = value[-1]["content"] or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)

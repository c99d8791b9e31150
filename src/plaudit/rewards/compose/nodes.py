"""The nodes of a formula. Each keeps its text, as it would be written."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from plaudit.rewards.compose.table import Operator


@dataclass(frozen=True, kw_only=True)
class Node:
    text: str

    @property
    def children(self) -> tuple[Node, ...]:
        return ()


@dataclass(frozen=True, kw_only=True)
class Number(Node):
    value: float


@dataclass(frozen=True, kw_only=True)
class Name(Node):
    """A reward's scores."""

    name: str


@dataclass(frozen=True, kw_only=True)
class Negative(Node):
    operand: Node

    @property
    def children(self) -> tuple[Node, ...]:
        return (self.operand,)


@dataclass(frozen=True, kw_only=True)
class Binary(Node):
    symbol: str
    left: Node
    right: Node

    @property
    def children(self) -> tuple[Node, ...]:
        return (self.left, self.right)


Value = Node | str | int | tuple[float, ...]


@dataclass(frozen=True, kw_only=True)
class Call(Node):
    """An operator of the table. An option that is a Node is a number, which may depend on the step."""

    operator: Operator
    parts: tuple[Node, ...]
    options: tuple[tuple[str, Value], ...]

    @property
    def children(self) -> tuple[Node, ...]:
        return (*self.parts, *(value for _, value in self.options if isinstance(value, Node)))


def walk(node: Node) -> Iterator[Node]:
    """The node and all below it, in the order of the text."""
    yield node
    for child in node.children:
        yield from walk(child)


def number_text(value: float) -> str:
    return repr(int(value)) if float(value).is_integer() and abs(value) < 1e15 else repr(float(value))

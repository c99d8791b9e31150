"""From the text of a recipe's `combine:` to a tree of nodes, by Python's own parser and a whitelist."""

from __future__ import annotations

import ast
import keyword
import math
from collections.abc import Collection, Sequence
from difflib import get_close_matches

from plaudit.errors import RecipeError
from plaudit.rewards.compose.nodes import Binary, Call, Name, Negative, Node, Number, Value, number_text, walk
from plaudit.rewards.compose.table import OPERATORS, Operator, Option

LONGEST, DEEPEST, LARGEST = 2000, 40, 300  # characters, levels, nodes
ALLOWED = "a formula is made of the names of rewards, numbers, + - * /, brackets and calls of operators"
SYMBOLS: dict[type[ast.operator], str] = {ast.Add: "+", ast.Sub: "-", ast.Mult: "*", ast.Div: "/"}


def parse_tree(text: str, rewards: Sequence[str]) -> Node:
    """The tree of `text`, every name of which is one of `rewards` and every call one of OPERATORS."""
    tree = _syntax(text, rewards)
    if _depth_exceeds(tree, DEEPEST):
        raise RecipeError(f"combine: the formula is nested deeper than {DEEPEST} levels; split it into rewards")
    root = _Builder(rewards).node(tree)
    if not any(isinstance(node, Name) for node in walk(root)):
        raise RecipeError(f'combine: "{text}" uses no reward; the rewards of this recipe are {_listed(rewards)}')
    return root


def _syntax(text: str, rewards: Sequence[str]) -> ast.expr:
    joined = " ".join(text.split())
    if not joined:
        raise RecipeError("combine: the formula is empty; leave `combine` out for the weighted sum of all rewards")
    if len(joined) > LONGEST:
        raise RecipeError(f"combine: the formula has {len(joined)} characters, more than {LONGEST}")
    if "#" in joined:
        raise RecipeError(f'combine: "{joined}" contains #, but a formula has no comments; {ALLOWED}')
    try:
        tree = ast.parse(joined, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        where = f" near character {error.offset}" if isinstance(error, SyntaxError) and error.offset else ""
        raise RecipeError(
            f'combine: "{joined}" cannot be read{where}; {ALLOWED}{_unwritable(joined, rewards)}'
        ) from None
    if sum(1 for _ in ast.walk(tree)) > 2 * LARGEST:
        raise RecipeError(f"combine: the formula has more than {LARGEST} parts; split it into rewards")
    return tree


def _depth_exceeds(tree: ast.AST, limit: int) -> bool:
    level: list[ast.AST] = [tree]
    for _ in range(limit):
        level = [child for node in level for child in ast.iter_child_nodes(node)]
        if not level:
            return False
    return True


def _unwritable(text: str, rewards: Collection[str]) -> str:
    names = [name for name in rewards if (not name.isidentifier() or keyword.iskeyword(name)) and name in text]
    return (
        f"; the reward name {names[0]!r} cannot stand in a formula: rename it with letters, digits and _"
        if names
        else ""
    )


class _Builder:
    def __init__(self, rewards: Sequence[str]) -> None:
        self.rewards = rewards

    def node(self, tree: ast.expr) -> Node:
        text = ast.unparse(tree)
        match tree:
            case ast.Constant(value=bool()):
                pass
            case ast.Constant(value=int() | float() as value):
                return _number(value, text)
            case ast.Name():
                return self._name(tree.id)
            case ast.UnaryOp(op=ast.USub()):
                return Negative(text=text, operand=self.node(tree.operand))
            case ast.BinOp() if type(tree.op) in SYMBOLS:
                left, right = self.node(tree.left), self.node(tree.right)
                return Binary(text=text, symbol=SYMBOLS[type(tree.op)], left=left, right=right)
            case ast.Call(func=ast.Name(id=name)):
                return self._call(name, tree, text)
        raise RecipeError(f'combine: "{text}" is not allowed; {ALLOWED}')

    def _name(self, name: str) -> Name:
        if name in self.rewards:
            return Name(text=name, name=name)
        hyphens = _unwritable(" ".join(self.rewards), self.rewards)
        if name in OPERATORS:
            raise RecipeError(f"combine: {name} is an operator; call it on rewards: {OPERATORS[name].usage}{hyphens}")
        raise RecipeError(
            f'combine: "{name}" is no reward of this recipe{_nearest(name, self.rewards)}; its rewards are '
            f"{_listed(self.rewards)}{hyphens}"
        )

    def _call(self, name: str, tree: ast.Call, text: str) -> Call:
        operator = OPERATORS.get(name)
        if operator is None:
            if name in self.rewards:
                raise RecipeError(f'combine: "{text}" calls the reward {name}; write {name} * (...) to multiply by it')
            raise RecipeError(
                f'combine: "{text}" calls {name}, which is no operator{_nearest(name, OPERATORS)}; the operators are '
                f"{_listed(sorted(OPERATORS))}"
            )
        if any(isinstance(argument, ast.Starred) for argument in tree.args) or any(
            k.arg is None for k in tree.keywords
        ):
            raise RecipeError(f'combine: "{text}" contains *, which unpacks nothing here; write the parts one by one')
        count = len(tree.args) if operator.more is not None else min(len(tree.args), len(operator.parts))
        if count < operator.fewest:
            raise RecipeError(
                f'combine: "{text}" has {count} of the at least {operator.fewest} parts; write {operator.usage}'
            )
        parts = tuple(self.node(argument) for argument in tree.args[:count])
        if parts and not any(isinstance(node, Name) for part in parts for node in walk(part)):
            raise RecipeError(f'combine: "{text}" uses no reward; write its value as a number')
        return Call(text=text, operator=operator, parts=parts, options=self._options(operator, tree, count, text))

    def _options(self, operator: Operator, tree: ast.Call, count: int, text: str) -> tuple[tuple[str, Value], ...]:
        by_name = {option.name: option for option in operator.options}
        further = tree.args[count:]
        if len(further) > len(by_name):
            raise RecipeError(
                f'combine: "{text}" has {len(tree.args)} arguments, more than there are; write {operator.usage}'
            )
        given = dict(zip(by_name, further, strict=False))
        for word in tree.keywords:
            name = word.arg or ""
            if name not in by_name:
                raise RecipeError(
                    f'combine: "{text}" has the option {name}, which {operator.name} does not know'
                    f"{_nearest(name, by_name)}; write {operator.usage}"
                )
            if name in given:
                raise RecipeError(f'combine: "{text}" gives {name} twice; write {operator.usage}')
            given[name] = word.value
        absent = [option.name for option in operator.options if option.required and option.name not in given]
        if absent:
            raise RecipeError(f'combine: "{text}" lacks {absent[0]}; write {operator.usage}')
        return tuple((name, self._option(operator, by_name[name], value, text)) for name, value in given.items())

    def _option(self, operator: Operator, option: Option, tree: ast.expr, text: str) -> Value:
        word = tree.value if isinstance(tree, ast.Constant) and isinstance(tree.value, str) else None
        found = f'combine: "{text}": {option.name} is {ast.unparse(tree)}, but '
        match option.kind:
            case "word":
                if word not in option.choices:
                    raise RecipeError(f"{found}it must be one of {_listed([repr(c) for c in option.choices])}")
                return word
            case "numbers":
                try:
                    values = tuple(float(item) for item in (word or "").split(","))
                except ValueError:
                    values = ()
                if not values or not all(math.isfinite(value) for value in values):
                    raise RecipeError(f'{found}it must be numbers in quotes, such as "0.5, 0.75"')
                return values
            case "integer":
                if not isinstance(tree, ast.Constant) or type(tree.value) is not int:
                    raise RecipeError(f"{found}it must be a whole number")
                return tree.value
        if word is not None:
            raise RecipeError(f"{found}it must be a number")
        node = self.node(tree)
        inner = list(walk(node))
        if any(isinstance(n, Name) or (isinstance(n, Call) and not n.operator.is_schedule) for n in inner):
            raise RecipeError(
                f"{found}it must be a number or a schedule such as linear(0, 1, 500): not a reward's scores"
            )
        if operator.has_memory and any(isinstance(n, Call) for n in inner):
            raise RecipeError(f"{found}{operator.name} has a memory, so its options are plain numbers")
        return node


def _number(value: int | float, text: str) -> Number:
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise RecipeError(f"combine: {text[:40]} is too large a number")
    return Number(text=number_text(number), value=number)


def _nearest(name: str, names: Collection[str]) -> str:
    near = get_close_matches(name, names, n=1)
    return f" (did you mean {near[0]}?)" if near else ""


def _listed(names: Collection[str]) -> str:
    return ", ".join(names) or "none"

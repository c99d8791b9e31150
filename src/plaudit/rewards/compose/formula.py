"""A recipe's `combine:` as a small tree: parsed from a whitelist, never executed as code.

`formula = parse("0.7 * match + 0.3 * clip(bright, 0, 1)", ["match", "bright"])`, then `formula.check_units(...)` once and
`formula.evaluate(...)` for every batch. Shape legend: B samples.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from plaudit.errors import RecipeError, RewardError
from plaudit.rewards.compose import units
from plaudit.rewards.compose.nodes import Binary, Call, Name, Negative, Node, Number, number_text, walk
from plaudit.rewards.compose.parse import parse_tree
from plaudit.rewards.compose.units import CONSTANT, Term, Unit, UnitError


@dataclass(frozen=True, kw_only=True)
class Evaluated:
    """`total [B]`, NaN where it is missing; `parts`: the values `[B]` of every reward and call by its text; `terms`: those
    of the summands, which add up to the total."""

    total: Tensor
    parts: Mapping[str, Tensor]
    terms: Mapping[str, Tensor]


class Formula:
    """How rewards become one number. Operators with a memory keep it here, in the order in which they are written."""

    def __init__(self, root: Node) -> None:
        self.root, self.text = root, root.text
        self.names = tuple(dict.fromkeys(node.name for node in walk(root) if isinstance(node, Name)))
        calls = [node for node in walk(root) if isinstance(node, Call) and node.operator.has_memory]
        self.memories = {id(node): node.operator.function(**_constants(node)) for node in calls}

    def check_units(self, given: Mapping[str, Unit]) -> None:
        """Raises a RecipeError where parts of different units are added or compared, given each reward's unit."""
        absent = [name for name in self.names if name not in given]
        assert not absent, f"no unit for {absent}"
        _unit(self.root, given)

    def evaluate(
        self,
        parts: Mapping[str, Tensor],
        group: Tensor,
        step: int = 0,
        *,
        prompts: Sequence[str] = (),
        learn: bool = False,
    ) -> Evaluated:
        """`parts`: each reward's scores `[B]`, NaN where missing; `prompts`: the ids of their prompts, for operators that
        draw. Memories are updated only when `learn` is set."""
        guard = _Guard()
        given = {name: guard(parts[name].double()) for name in self.names}
        for name, part in given.items():
            assert part.shape == group.shape, (name, part.shape, group.shape)
        run = _Run(parts=given, group=group, step=step, prompts=prompts, learn=learn, memories=self.memories)
        terms: dict[str, Tensor] = {}
        try:
            for node in _summands(self.root):
                value = run.tensor(node)
                terms[node.text] = terms[node.text] + value if node.text in terms else value
        except ValueError as error:  # an option that a schedule has made senseless at this step
            raise RecipeError(f'combine: "{self.text}" at step {step}: {error}') from error
        total = torch.stack(list(terms.values())).sum(0)
        guard.missing = total.isnan()
        if total.isinf().any():
            at = int(total.isinf().nonzero()[0])
            raise RewardError(f'combine: "{self.text}" is infinite for output {at} of the batch; clip its parts')
        return Evaluated(total=total, parts=run.seen, terms=terms)

    def state(self) -> dict[str, Any]:
        return {"combine": self.text, "memories": [memory.state() for memory in self.memories.values()]}

    def load_state(self, state: Mapping[str, Any]) -> None:
        if state["combine"] != self.text:
            raise RecipeError(
                f'combine: the checkpoint was written with "{state["combine"]}", the recipe says "{self.text}"; '
                "put the old formula back, or start a new run"
            )
        for memory, remembered in zip(self.memories.values(), state["memories"], strict=True):
            memory.load_state(remembered)


def parse(text: str, rewards: Sequence[str], unweighted: Collection[str] = ()) -> Formula:
    """The formula of `text` over `rewards`. All must be used, but for the `unweighted` (weight 0: only watched)."""
    formula = _made(parse_tree(text, rewards))
    unused = [name for name in rewards if name not in (*formula.names, *unweighted)]
    if unused:
        raise RecipeError(
            f'combine: "{text}" does not use the reward {unused[0]}; use it, take it out of `rewards`, or watch it '
            f"without training on it by `rewards.{unused[0]}.weight: 0`"
        )
    return formula


def weighted_sum_formula(weights: Mapping[str, float]) -> Formula:
    """What a recipe without `combine` means: the sum of weight * reward. Weights of 0 are left out."""
    root: Node | None = None
    for name, weight in ((name, weight) for name, weight in weights.items() if weight):
        factor, reward = Number(text=number_text(abs(weight)), value=abs(weight)), Name(text=name, name=name)
        term: Node = reward
        if abs(weight) != 1:
            term = Binary(text=f"{factor.text} * {name}", symbol="*", left=factor, right=reward)
        if root is None:
            root = term if weight > 0 else Negative(text=f"-{term.text}", operand=term)
        else:
            symbol = "+" if weight > 0 else "-"
            root = Binary(text=f"{root.text} {symbol} {term.text}", symbol=symbol, left=root, right=term)
    if root is None:
        raise RecipeError("rewards: all weights are 0, so there is nothing to learn; give one of them a weight")
    return Formula(root)


def _made(root: Node) -> Formula:
    """The formula, tried on two made-up outputs, so that a senseless option is found before training."""
    try:
        formula = Formula(root)
        trial = {name: torch.tensor([0.25, 0.5]) for name in formula.names}
        formula.evaluate(trial, torch.zeros(2, dtype=torch.long), prompts=["", ""])
    except ValueError as error:
        raise RecipeError(f'combine: "{root.text}": {error}') from error
    except RewardError:
        pass  # scores like the made-up ones may be out of an operator's domain; real ones are checked when they come
    return formula


# --- values ----------------------------------------------------------------------------------------------------------


@dataclass(kw_only=True)
class _Run:
    """One evaluation: what the tree is evaluated on, and the values seen on the way."""

    parts: Mapping[str, Tensor]
    group: Tensor
    step: int
    prompts: Sequence[str] = ()
    learn: bool = False
    memories: Mapping[int, Any] = field(default_factory=dict)
    seen: dict[str, Tensor] = field(default_factory=dict)

    def tensor(self, node: Node) -> Tensor:
        value = self.value(node)
        return value if isinstance(value, Tensor) else torch.full(self.group.shape, value, dtype=torch.float64)

    def value(self, node: Node) -> Tensor | float:
        match node:
            case Number():
                return node.value
            case Name():
                self.seen[node.text] = self.parts[node.name]
                return self.parts[node.name]
            case Negative():
                return -self.value(node.operand)
            case Binary():
                return _arithmetic(node.symbol, self.value(node.left), self.value(node.right))
            case Call():
                value = self._call(node)
                self.seen[node.text] = torch.as_tensor(value, dtype=torch.float64).expand(self.group.shape)
                return value
        raise AssertionError(node)

    def _call(self, node: Call) -> Tensor | float:
        operator = node.operator
        parts = [self.tensor(part) for part in node.parts]
        fixed = len(operator.parts)
        positional = parts if operator.more is None else [*parts[:fixed], parts[fixed:]]
        given = {"group": self.group, "step": self.step, "prompts": self.prompts, "learn": self.learn}
        given = {name: given[name] for name in operator.needs}
        if operator.has_memory:
            remembered: Tensor = self.memories[id(node)](*positional, **given)
            return remembered
        options = {name: self.value(option) if isinstance(option, Node) else option for name, option in node.options}
        value: Tensor | float = operator.function(*positional, **options, **given)
        return value


class _Guard:
    """Keeps the gradient of a missing total, which would be NaN even at no weight, from the parts that are there."""

    missing: Tensor

    def __call__(self, part: Tensor) -> Tensor:
        if part.requires_grad:
            part = part.view_as(part)
            part.register_hook(lambda gradient: gradient.masked_fill(self.missing, 0.0))
        return part


def _arithmetic(symbol: str, left: Tensor | float, right: Tensor | float) -> Tensor | float:
    match symbol:
        case "+":
            return left + right
        case "-":
            return left - right
        case "*":
            return left * right
    if isinstance(right, Tensor):  # a quotient by 0 does not exist: it is missing, not infinite
        return torch.where(right == 0, torch.nan, left / torch.where(right == 0, torch.ones_like(right), right))
    if right == 0:
        raise ValueError("division by 0")
    return left / right


def _summands(root: Node) -> Iterator[Node]:
    """The terms of a sum; what is subtracted comes as a negative term."""
    if isinstance(root, Binary) and root.symbol in "+-":
        yield from _summands(root.left)
        right = root.right
        yield right if root.symbol == "+" else Negative(text=f"-({right.text})", operand=right)
    else:
        yield root


def _constants(call: Call) -> dict[str, Any]:
    """The options that do not depend on the step."""
    nothing = _Run(parts={}, group=torch.zeros(0), step=0)
    return {
        name: nothing.value(option) if isinstance(option, Node) else option
        for name, option in call.options
        if not (isinstance(option, Node) and any(isinstance(node, Call) for node in walk(option)))
    }


# --- units -----------------------------------------------------------------------------------------------------------

RULES: dict[str, units.Rule] = {"+": units.same, "-": units.same, "*": units.product, "/": units.quotient}


def _unit(node: Node, given: Mapping[str, Unit]) -> Unit:
    operands: Sequence[Node]
    rule: units.Rule
    options: units.Options
    match node:
        case Number():
            return CONSTANT
        case Name():
            return given[node.name]
        case Negative():
            return _unit(node.operand, given)
        case Binary():
            rule, operands, options = RULES[node.symbol], (node.left, node.right), {}
        case Call():
            defaults = {option.name: option.default for option in node.operator.options if not option.required}
            written = {name for name, _ in node.options}
            kept = {name: value for name, value in defaults.items() if name not in written}
            rule, operands, options = node.operator.unit, node.parts, kept | _constants(node)
        case _:
            raise AssertionError(node)
    try:
        return rule([Term(text=operand.text, unit=_unit(operand, given)) for operand in operands], options)
    except UnitError as error:
        raise RecipeError(f'combine: "{node.text}" {error}') from None

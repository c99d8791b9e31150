"""Who learns when, where rewards learn too."""

from __future__ import annotations

from plaudit.recipe.base import Positive, Strict

POLICY = "policy"  # the generator


class Turn(Strict):
    """So many steps in which one of them learns from what the generator drew."""

    train: str
    """A reward of this recipe that learns, or policy."""
    steps: Positive = 1
    """In a row."""


class Turns(Strict):
    """Of a generator, and of rewards that learn from what it draws."""

    order: tuple[Turn, ...] = ()
    """A cycle, such as `[{train: real, steps: 9}, {train: policy}]`."""
    gate: str | None = None
    """Instead of a cycle: this reward learns in every step in which its references score below what was drawn, the generator in
    every other (Adv-GRPO)."""

    @property
    def named(self) -> list[str]:
        return [turn.train for turn in self.order] if self.gate is None else [self.gate, POLICY]

    def at(self, step: int) -> str:
        """Whose turn of the cycle a step is; the generator's without one."""
        rows = [turn.train for turn in self.order for _ in range(turn.steps)] or [POLICY]
        return rows[step % len(rows)]

"""The total of a suite as a differentiable function of the pictures."""

from __future__ import annotations

import torch
from torch import Tensor

from plaudit.errors import RecipeError, RewardError
from plaudit.rewards.calling.request import Request
from plaudit.rewards.load import Reward
from plaudit.rewards.suite import Suite


def differentiable_total(suite: Suite, request: Request) -> Tensor:
    """Totals `[B]` in float64 with a graph back to `request.outputs`, equal to what the suite says without one.

    NaN where a score is missing; its gradient is no number either.
    """
    assert suite.formula is not None, "a suite without a formula has no total"
    with torch.enable_grad():
        parts = {
            reward.name: _scaled(suite, reward.name, _values(reward, request))
            for reward in suite.rewards
            if reward.name in suite.formula.names
        }
        ids = [prompt.id for prompt in request.prompts]
        return suite.formula.evaluate(parts, torch.tensor(request.group), request.step, prompts=ids).total


def check_differentiable(reward: Reward) -> None:
    if reward.card is not None and not reward.card.differentiable:
        raise RecipeError(
            f"rewards.{reward.name} has no gradient (its card says so); use a differentiable reward (`plaudit rewards list` "
            "names them), or what needs none: the search method best_of_n, the objectives nft and grpo"
        )


def _scaled(suite: Suite, name: str, values: Tensor) -> Tensor:
    return suite.scales[name](values) if name in suite.scales else values


def _values(reward: Reward, request: Request) -> Tensor:
    """One reward's values `[B]`. Its caller detaches what it hands over and turns scores into numbers, so the function is
    called here, with the arguments that the caller would give it."""
    check_differentiable(reward)
    caller = reward.caller
    given = caller.arguments(request) | {caller.arguments.output_name: request.outputs}
    result = caller.function(**given)
    if not isinstance(result, Tensor) or not result.requires_grad or result.shape != (len(request),):
        shown = (
            f"a tensor of shape {list(result.shape)} without a graph" if isinstance(result, Tensor) else repr(result)
        )
        raise RewardError(
            f"rewards.{reward.name} returned {shown[:120]}; a method that follows the gradient needs a tensor "
            f"[{len(request)}] that depends on the outputs"
        )
    return torch.where(result.isfinite(), result, torch.nan).double()

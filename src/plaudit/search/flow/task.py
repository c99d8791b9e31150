"""What a search method may use of a flow model. Every operation counts itself in the ledger, and refuses work that the
budget does not pay for before it is done.

A method is one file with one frozen dataclass: its fields are the options, `run(task)` yields `Found` batches of
finished, scored candidates as they come, and `search/table.py` names it. It owes its caller three things:

1. Candidate 0 of every prompt is the plain sample and comes first: `yield task.plain()`, or rows of `task.sample` with
   candidate 0 among them. So no search ends below plain sampling, and all methods share one baseline.
2. It plans with `task.fits(cost)`: None means that only time is limited, so it goes on in rounds of about `task.tile`
   rows until an operation raises TimeUp (not to be caught: what has been yielded is kept).
3. Noise comes from the rows' own keys, so results do not depend on the tile; copies of a row are renumbered.

    rows = task.start(prompt, candidate)            initial noise [B, *]                                          free
    v = task.velocity(rows, t)                      guided velocity                      network_calls (2 with guidance)
    step = task.transition(rows, v, t, t_next)      mean and std of a kernel's step                               free
    rows = task.move(rows, step, decision)          draws it; children: rows.repeat(K), then move                 free
    rows = task.finish(rows, k)                     the ODE from times[k] to data                         network_calls
    pictures = task.preview(rows, v, t)             decoded x - t v                                              decodes
    pictures = task.decode(rows)                    decoded states                                               decodes
    score = task.score(pictures, rows.prompt)       totals [B], NaN where missing                          reward_calls
    task.found(rows, pictures, score)               a batch to yield                                              free
    task.finished(rows)                             decode, score and found
    task.value_and_gradient(rows, value)            value [B] and its slope [B, *]                       gradient_calls
    task.differentiable_score(pictures, prompt)     inside of `value`                                      reward_calls
    task.cost(velocities=, decodes=, scores=, gradients=)   what such work costs, for `fits` and `affords`

`task.times [K + 1]` runs from 1 to 0; `kernel` and `level` default to the task's. Operations build a graph exactly when
the rows' states require a gradient. Choose with `rows.best_rows`, which knows that missing is not zero.

Shape legend: B rows, K steps, * latent dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from plaudit.data.prompt import Prompt
from plaudit.errors import RewardError
from plaudit.models.flow import Conditioning, FlowModel, clean_prediction, guided_velocity
from plaudit.rewards.suite import Suite
from plaudit.sampling.kernels import Transition, transition
from plaudit.sampling.path import move
from plaudit.sampling.rollout import noise_scale, tiles
from plaudit.search.base import Task
from plaudit.search.budget import Budget, Cost
from plaudit.search.rows import Found, Rows

Time = Tensor | float


@dataclass(frozen=True, kw_only=True)
class Slope:
    """A value `[B]` of every row and its gradient `[B, *]` with respect to the state, NaN where the value is missing."""

    value: Tensor
    gradient: Tensor


class FlowTask(Task):
    """A flow model, its prompts and how it is sampled. `conditioning` has one row per prompt."""

    def __init__(
        self,
        model: FlowModel,
        prompts: Sequence[Prompt],
        conditioning: Conditioning,
        suite: Suite | None,
        budget: Budget,
        *,
        times: Tensor,
        kernel: str = "flow_sde",
        level: float = 0.7,
        solver: str = "euler",
        **common: object,
    ) -> None:
        super().__init__(prompts, suite, budget, **common)  # type: ignore[arg-type]
        assert len(conditioning.condition) == len(prompts)
        self.model, self.conditioning, self.times = model, conditioning, times
        self.kernel, self.level, self.solver = kernel, level, solver

    @property
    def steps(self) -> int:
        return len(self.times) - 1

    # --- cost --------------------------------------------------------------------------------------------------------

    def cost(self, *, velocities: int = 0, decodes: int = 0, scores: int = 0, gradients: int = 0) -> Cost:
        """Of so many velocities, decodes, scored outputs and gradients of one row."""
        return Cost(
            network_calls=velocities * self.conditioning.calls_per_velocity,
            decodes=decodes,
            reward_calls=scores * self.calls_per_score,
            gradient_calls=gradients,
        )

    def velocities_to_finish(self, k: int = 0) -> int:
        """Velocities of the stock sampler from times[k] on; Heun looks ahead on all steps but the last."""
        left = self.steps - k
        return 2 * left - 1 if self.solver == "heun" and left else left

    @property
    def sample_cost(self) -> Cost:
        return self.cost(velocities=self.velocities_to_finish(), decodes=1, scores=1)

    # --- the model ---------------------------------------------------------------------------------------------------

    def velocity(self, rows: Rows, t: Time) -> Tensor:
        """Guided velocity `[B, *]` at time `t`, a number or `[B]`."""
        each, at = self.conditioning.calls_per_velocity, self._at(t, len(rows))
        self.ledger.require("network_calls", rows.prompt, each)
        parts = []
        for of in tiles(len(rows), self.tile):
            prompt = rows.prompt[of]
            with self.spending("network_calls", prompt, each), torch.set_grad_enabled(rows.x.requires_grad):
                parts.append(guided_velocity(self.model, rows.x[of], at[of], self.conditioning.select(prompt)))
        return torch.cat(parts)

    def decode(self, rows: Rows) -> Tensor:
        """Pictures `[B, 3, H, W]` of clean states."""
        self.ledger.require("decodes", rows.prompt)
        parts = []
        for of in tiles(len(rows), self.tile):
            with self.spending("decodes", rows.prompt[of]), torch.set_grad_enabled(rows.x.requires_grad):
                parts.append(self.model.decode(rows.x[of]))
        return torch.cat(parts)

    def preview(self, rows: Rows, v: Tensor, t: Time) -> Tensor:
        """Pictures of the clean states that the velocity at time `t` points to."""
        return self.decode(rows.at(clean_prediction(rows.x, v, self._at(t, len(rows)))))

    # --- steps -------------------------------------------------------------------------------------------------------

    def start(self, prompt: Tensor, candidate: Tensor) -> Rows:
        """The noise that sampling of these candidates starts from."""
        x = self.noise(prompt, candidate, "initial", self.model.latent_shape) * noise_scale(self.times[0])
        return Rows(x=x, prompt=prompt, candidate=candidate)

    def transition(
        self,
        rows: Rows,
        v: Tensor,
        t: Time,
        t_next: Time,
        *,
        kernel: str | None = None,
        level: Time | None = None,
    ) -> Transition:
        """Mean and deviation of a step from `t` to `t_next`; level 0 is the step of the ODE."""
        B = len(rows)
        noise_level = self._at(self.level if level is None else level, B)
        return transition(kernel or self.kernel, rows.x, v, self._at(t, B), self._at(t_next, B), noise_level)

    def move(self, rows: Rows, step: Transition, decision: int) -> Rows:
        """Draw the step with the rows' own noise of this decision; a step without noise costs none."""
        if not (step.std > 0).any():
            return rows.at(step.mean)
        return rows.at(move(step, self.keys(rows.prompt, rows.candidate), decision))

    def finish(self, rows: Rows, k: int = 0) -> Rows:
        """To data by the stock sampler, from `times[k]` on."""
        for t, t_next in zip(self.times[k:-1], self.times[k + 1 :], strict=True):
            v = self.velocity(rows, t)
            if self.solver == "heun" and t_next > 0:
                ahead = rows.at(self.transition(rows, v, t, t_next, kernel="ode").mean)
                v = 0.5 * (v + self.velocity(ahead, t_next))
            rows = rows.at(self.transition(rows, v, t, t_next, kernel="ode").mean)
        return rows

    # --- results -----------------------------------------------------------------------------------------------------

    def found(self, rows: Rows, pictures: Tensor, score: Tensor) -> Found:
        return Found(
            outputs=pictures.detach(),
            score=score.detach(),
            prompt=rows.prompt,
            candidate=rows.candidate,
            latents=rows.x.detach(),
        )

    def finished(self, rows: Rows) -> Found:
        """Clean states decoded and scored."""
        pictures = self.decode(rows)
        return self.found(rows, pictures, self.score(pictures, rows.prompt))

    def sample(self, prompt: Tensor, candidate: Tensor) -> Found:
        with self.untimed(bool((candidate == 0).any())):
            return self.finished(self.finish(self.start(prompt, candidate)))

    # --- gradients ---------------------------------------------------------------------------------------------------

    def value_and_gradient(self, rows: Rows, value: Callable[[Rows], Tensor]) -> Slope:
        """`value(rows) -> [B]`, made of the operations above, and its slope with respect to each row's own state."""
        self.ledger.require("gradient_calls", rows.prompt)
        values, gradients = [], []
        for of in tiles(len(rows), self.tile):
            part = rows.select(of)
            part = part.at(part.x.detach().requires_grad_())
            with torch.enable_grad():
                result = value(part)
            if not result.requires_grad:
                raise RewardError("the value does not depend on the state, so it has no gradient")
            with self.spending("gradient_calls", part.prompt):
                values.append(result.detach())
                gradients.append(_slope(result, part.x))
        return Slope(value=torch.cat(values), gradient=torch.cat(gradients))

    def _at(self, t: Time, count: int) -> Tensor:
        """A number, or one per row, as `[B]`."""
        return torch.as_tensor(t, dtype=torch.float32).expand(count)


def _slope(value: Tensor, x: Tensor) -> Tensor:
    there = value.detach().isfinite()
    (gradient,) = torch.autograd.grad(value, x, grad_outputs=there.to(value.dtype))
    missing = ~there.reshape(-1, *[1] * (x.ndim - 1))
    return gradient.masked_fill(missing, torch.nan)

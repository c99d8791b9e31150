"""SMC decoding: whole texts from "model probability times exp(reward)" with particles (S094).

Target: Pi(x) in proportion to m(x)^power exp(alpha r(x)), where m is the model as it is sampled. The proposal is m, so that a
block's weight is Psi_k / Psi_{k-1} times m(block)^(power - 1): for power 1 the likelihood cancels. Psi_k = exp(alpha r(x_1:k))
on beginnings (Target I), or with `rollouts` the mean of exp(alpha r) m(rest)^(power - 1) over that many completions of the
beginning (Target II). r before the first block counts as 0, which changes no weight.

    per block: extend; weigh; where the effective size is below `ess` N, resample (multinomial); move

Moved are particles of resampled prompts that are copies of another one and score below `below`: `moves` times, their last
`back` blocks are drawn anew from m and taken with chance min(1, Psi(x') / Psi(x) (m(x') / m(x))^(power - 1)). Weights stay.

What to know about it:
- `below` and `movers: copies` are the paper's. The kernel leaves the target as it is only where whom it moves depends neither
  on states nor on weights: `movers: all` with `below` null moves every particle after every block. Then weighted sums over
  particles are unbiased for any number of them, while the budget pays for all moves. Moving low scores alone favours high
  rewards; moving copies and not their originals favours low ones, for it is what scored high that is copied. More particles
  mend neither.
- The place that a move goes back to is that of the block and never that of the particle's own end, or there would be no way
  back from a proposal that ends elsewhere. So particles that ended before it stay as they are.
- Moves are made while the budget pays for them beside what the particles themselves still need.
- With `output: best`, every text that was finished and scored is a candidate. With `weighted`, one particle drawn by its weight
  is, beside the plain sample.

Shape legend: P prompts, N particles, B = P N rows prompt by prompt, M roll-outs, T tokens at most.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from plaudit.errors import RecipeError
from plaudit.sampling.noise import uniform
from plaudit.search import weights as smc
from plaudit.search.budget import Cost
from plaudit.search.rows import Found, places
from plaudit.search.text.rows import TokenRows
from plaudit.search.text.streaming import compiled, has_pieces
from plaudit.search.text.task import TokenTask, Until


@dataclass(frozen=True, kw_only=True)
class Particles:
    """Rows `[B]` with the `score [B]` of what they have so far, NaN where it is missing, the last known logarithm of
    Psi `[B]`, and the logarithm of their weights `[P, N]`."""

    rows: TokenRows
    score: Tensor
    potential: Tensor
    log_weight: Tensor

    def select(self, rows: Tensor) -> Particles:
        """Some of the rows; the weights keep their places."""
        return replace(self, rows=self.rows.select(rows), score=self.score[rows], potential=self.potential[rows])


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Rows `[A]`: score, logarithm of Psi, and the finished texts that were scored on the way."""

    score: Tensor
    potential: Tensor
    found: tuple[Found, ...]


def acceptance(potential: Tensor, proposed: Tensor, log_m: Tensor, proposed_log_m: Tensor, power: float) -> Tensor:
    """Logarithm of the Metropolis-Hastings ratio of proposals from m; those without a score are never taken."""
    ratio = proposed - potential + (power - 1) * (proposed_log_m - log_m)
    return torch.where(proposed.isnan(), -torch.inf, ratio)


def is_copy(ancestors: Tensor) -> Tensor:
    """Which particles `[P, N]` have the ancestor of an earlier one."""
    return (ancestors[:, :, None] == ancestors[:, None, :]).tril(-1).any(2)


@dataclass(frozen=True, kw_only=True)
class TokenSmc:
    """`blocks` of equal numbers of tokens, or with a `boundary` (a regular expression) one piece of text each, the last block
    to the end. Passes are repeated, each for itself, while the budget pays for another."""

    particles: int = 16
    alpha: float = 4.0
    blocks: int = 4
    boundary: str | None = None
    ess: float = 0.5
    moves: int = 2
    movers: Literal["copies", "all"] = "copies"
    below: float | None = 0.5
    back: int = 1
    power: float = 1.0
    rollouts: int = 0
    output: Literal["best", "weighted"] = "best"

    def __post_init__(self) -> None:
        if self.boundary is not None:
            compiled(self.boundary)
        least = {"particles": 1, "blocks": 1, "moves": 0, "back": 1, "rollouts": 0, "ess": 0}
        for name, low in least.items():
            if getattr(self, name) < low:
                raise RecipeError(f"smc: {name} {getattr(self, name)}; it must be at least {low}")
        if self.ess > 1 or not (math.isfinite(self.alpha) and self.power > 0):
            raise RecipeError(
                f"smc: ess {self.ess}, alpha {self.alpha}, power {self.power}; ess is a share of the particles (at most 1), "
                "alpha a number and power more than 0"
            )

    def run(self, task: TokenTask) -> Iterator[Found]:
        self._check(task)
        yield task.plain()
        turn, counted = 0, torch.ones(len(task.prompts), dtype=torch.long)
        while (fits := task.fits(self.pass_cost(task))) is None or fits > 0:
            for found in self.one_pass(task, turn):
                number = counted[found.prompt] + places(found.prompt)
                counted += torch.bincount(found.prompt, minlength=len(counted))
                yield replace(found, candidate=number)
            turn += 1

    def _check(self, task: TokenTask) -> None:
        if not task.affords(task.sample_cost + self.pass_cost(task)):
            needed = task.sample_cost + self.pass_cost(task)
            raise RecipeError(
                f"smc: the plain sample and {self.particles} particles may need {needed.network_calls} network calls and "
                f"{needed.reward_calls} reward calls per prompt, and the budget is {task.budget}; give it more, or take fewer "
                "particles, blocks or rollouts"
            )

    def pass_cost(self, task: TokenTask) -> Cost:
        """The most that the particles of a prompt cost, without moves."""
        return self._rest(task, 0)

    def _rest(self, task: TokenTask, stage: int) -> Cost:
        """The most that the particles of a prompt still need after this stage."""
        left = range(stage + 1, self.blocks + 1)
        scores = sum(1 if k == self.blocks or not self.rollouts else self.rollouts for k in left)
        tokens = task.longest - self._least_length(task, stage)
        ahead = sum(task.longest - self._least_length(task, k) for k in left) * self.rollouts
        return self.particles * task.cost(tokens=tokens + ahead, scores=scores)

    def _least_length(self, task: TokenTask, stage: int) -> int:
        """Tokens that an unfinished row is sure to have after a stage."""
        return min(stage * self._block(task), task.longest) if self.boundary is None else min(stage, task.longest)

    def _block(self, task: TokenTask) -> int:
        return -(-task.longest // self.blocks)

    # --- one pass ----------------------------------------------------------------------------------------------------

    def one_pass(self, task: TokenTask, turn: int = 0) -> Iterator[Found]:
        """Finished, scored texts; candidate numbers are those of the rows."""
        for particles, found in self.stages(task, turn):
            last = particles
            if self.output == "best":
                yield from found
        if self.output == "weighted":
            yield self._sampled(task, last, turn)

    def stages(self, task: TokenTask, turn: int = 0) -> Iterator[tuple[Particles, tuple[Found, ...]]]:
        """The particles after every block, and the texts that were finished and scored in it."""
        P, N = len(task.prompts), self.particles
        prompt, slot = torch.arange(P).repeat_interleave(N), torch.arange(1, N + 1).repeat(P)
        zero = torch.zeros(P * N, dtype=torch.float64)
        rows = task.start(prompt, slot)
        particles = Particles(rows=rows, score=zero, potential=zero, log_weight=zero.view(P, N))
        for stage in range(1, self.blocks + 1):
            particles, found = self._advance(task, particles, stage, turn)
            particles, moved = self._rejuvenate(task, particles, stage, turn)
            yield particles, found + moved
            if particles.rows.finished.all():
                return

    def _advance(
        self, task: TokenTask, particles: Particles, stage: int, turn: int
    ) -> tuple[Particles, tuple[Found, ...]]:
        """Draw a block and weigh it."""
        going = (~particles.rows.finished).nonzero()[:, 0]
        before = particles.rows.log_prob.sum(1)
        tokens, until = self._end_of(task, stage)
        rows = task.extend(particles.rows, tokens, until=until, stream=f"{turn} block {stage}")
        judged = self._judge(task, rows.select(going), stage, f"{turn} ahead {stage}")
        score = particles.score.index_put((going,), judged.score)
        P, N = particles.log_weight.shape
        lineage = smc.Lineage(product=particles.potential.view(P, N), running=particles.potential.view(P, N))
        value = particles.potential.index_put((going,), judged.potential).view(P, N)
        weighed = smc.weigh("difference", 1.0, value, lineage)
        increment = weighed.increment
        if rows.finished.all():  # what has no score in the end has no weight
            increment = torch.where(score.view(P, N).isnan(), -torch.inf, increment)
        likelihood = (self.power - 1) * (rows.log_prob.sum(1) - before).view(P, N)
        return (
            Particles(
                rows=rows,
                score=score,
                potential=weighed.lineage.running.flatten(),
                log_weight=particles.log_weight + increment + likelihood,
            ),
            judged.found,
        )

    def _end_of(self, task: TokenTask, stage: int) -> tuple[int | None, Until | None]:
        """Where a stage ends: after how many tokens, or at which text."""
        if stage == self.blocks:
            return None, None
        if self.boundary is None:
            return self._block(task), None
        return None, partial(has_pieces, boundary=compiled(self.boundary), count=stage)

    def _rejuvenate(
        self, task: TokenTask, particles: Particles, stage: int, turn: int
    ) -> tuple[Particles, tuple[Found, ...]]:
        """Resample the prompts whose weights have become too uneven, and move the copies there, or all particles of all
        prompts: if only resampled ones moved, their weights would have chosen who moves."""
        P, N = particles.log_weight.shape
        uneven = smc.effective_size(particles.log_weight) < self.ess * N
        if self.movers == "copies" and not uneven.any():
            return particles, ()
        rows, own = particles.rows, torch.arange(N).expand(P, N)
        points = uniform(task.keys(rows.prompt, rows.candidate), f"{turn} resample {stage}", 1).view(P, N)
        ancestors = torch.where(uneven[:, None], smc.resample(particles.log_weight, points), own)
        weight = torch.where(uneven[:, None], smc.after_resampling(particles.log_weight), particles.log_weight)
        flat = (ancestors + N * torch.arange(P)[:, None]).flatten()
        copied = replace(particles.select(flat), log_weight=weight)
        copied = replace(copied, rows=copied.rows.numbered(rows.candidate))
        movers = is_copy(ancestors) if self.movers == "copies" else torch.ones(P, N, dtype=torch.bool)
        return self._moved(task, copied, movers.flatten(), stage, turn)

    def _moved(
        self, task: TokenTask, particles: Particles, movers: Tensor, stage: int, turn: int
    ) -> tuple[Particles, tuple[Found, ...]]:
        found: tuple[Found, ...] = ()
        chosen = movers & ~particles.score.isnan()  # no way leads back to what has no score, so none leads away from it
        chosen = chosen if self.below is None else chosen & (particles.score < self.below)
        position = self._begin_of(task, particles.rows, stage)
        chosen = (chosen & (particles.rows.length > position)).nonzero()[:, 0]
        for move in range(self.moves if len(chosen) else 0):
            if not self._affords_move(task, particles.rows.prompt[chosen], stage):
                break
            name = f"{turn} move {stage}.{move}"
            particles, seen = self._step(task, particles, chosen, position[chosen], stage, name)
            found += seen
        return particles, found

    def _step(
        self, task: TokenTask, particles: Particles, chosen: Tensor, position: Tensor, stage: int, name: str
    ) -> tuple[Particles, tuple[Found, ...]]:
        """One Metropolis-Hastings step of the particles `[A]` from their first `position [A]` tokens on."""
        old = particles.rows.select(chosen)
        tokens, until = self._end_of(task, stage)
        if tokens is not None:
            tokens *= min(self.back, stage)
        new = task.regenerate(old, position, tokens, until=until, stream=name)
        judged = self._judge(task, new, stage, f"{name} ahead")
        ratio = acceptance(
            particles.potential[chosen], judged.potential, old.log_prob.sum(1), new.log_prob.sum(1), self.power
        )
        number = uniform(task.keys(old.prompt, old.candidate), f"{name} accept", 1)[:, 0].double()
        taken = number.log() < ratio
        index = torch.arange(len(particles.rows))
        index[chosen[taken]] = len(particles.rows) + taken.nonzero()[:, 0]
        both = replace(
            particles,
            rows=TokenRows.cat([particles.rows, new]),
            score=torch.cat([particles.score, judged.score]),
            potential=torch.cat([particles.potential, judged.potential]),
        )
        return both.select(index), judged.found

    def _begin_of(self, task: TokenTask, rows: TokenRows, stage: int) -> Tensor:
        """Tokens `[B]` before the blocks that a move after this stage draws anew."""
        before = max(stage - self.back, 0)
        if self.boundary is None or before == 0:
            return torch.full_like(rows.length, before * self._block(task))
        boundary = compiled(self.boundary)
        return torch.tensor(
            [
                next((t for t in range(n) if has_pieces(task.model.decode(ids[:t]), boundary, before)), n)
                for ids, n in zip(rows.ids.tolist(), rows.length.tolist(), strict=True)
            ]
        )

    def _affords_move(self, task: TokenTask, prompt: Tensor, stage: int) -> bool:
        most = int(torch.bincount(prompt).max())
        began = self._least_length(task, max(stage - self.back, 0))
        ends = task.longest if self.boundary or stage == self.blocks else self._least_length(task, stage)
        ahead = 0 if stage == self.blocks else self.rollouts * (task.longest - self._least_length(task, stage))
        move = task.cost(tokens=ends - began + ahead, scores=max(self.rollouts, 1))
        return task.affords(self._rest(task, stage) + most * move)

    # --- the potential -----------------------------------------------------------------------------------------------

    def _judge(self, task: TokenTask, rows: TokenRows, stage: int, stream: str) -> Judged:
        """Score of beginnings, or of completions of them. Without roll-outs Psi is exp(alpha score)."""
        if not len(rows):
            empty = torch.zeros(0, dtype=torch.float64)
            return Judged(score=empty, potential=empty, found=())
        if self.rollouts and not rows.finished.all():
            return self._look_ahead(task, rows, stream)
        texts = task.texts(rows)
        score = task.score(texts, rows.prompt, task.ids(rows))
        done = rows.finished.nonzero()[:, 0]
        found = Found(
            outputs=[texts[i] for i in done.tolist()],
            score=score[done],
            prompt=rows.prompt[done],
            candidate=rows.candidate[done],
        )
        return Judged(score=score, potential=self.alpha * score, found=(found,) if len(done) else ())

    def _look_ahead(self, task: TokenTask, rows: TokenRows, stream: str) -> Judged:
        """Psi of unfinished rows is estimated; a finished one is its own completion, judged once. The score is the reward
        that Psi amounts to; roll-outs without a score are left out."""
        done, going = rows.finished.nonzero()[:, 0], (~rows.finished).nonzero()[:, 0]
        potential = torch.full((len(rows),), torch.nan, dtype=torch.float64)
        judged, M = self._judge(task, rows.select(done), self.blocks, stream), self.rollouts
        potential[done] = judged.potential
        ahead = rows.select(going.repeat_interleave(M))
        ahead = ahead.numbered(ahead.candidate * M + torch.arange(M).repeat(len(going)))
        before = ahead.log_prob.sum(1)
        ahead = task.extend(ahead, stream=stream)
        found = task.finished(ahead)
        likelihood = (self.power - 1) * (ahead.log_prob.sum(1) - before)
        potential[going] = mean_of_potentials((self.alpha * found.score + likelihood).view(-1, M))
        score = potential / self.alpha if self.alpha else torch.zeros_like(potential)
        return Judged(score=score, potential=potential, found=(*judged.found, found))

    def _sampled(self, task: TokenTask, particles: Particles, turn: int) -> Found:
        """One particle of every prompt, drawn by its weight."""
        P, N = particles.log_weight.shape
        every = torch.arange(P)
        number = uniform(task.keys(every, torch.zeros_like(every)), f"{turn} output", 1)
        chosen = smc.resample(particles.log_weight, number)[:, 0] + N * every
        texts = task.texts(particles.rows.select(chosen))
        rows = particles.rows.select(chosen)
        return task.found(rows, texts, particles.score[chosen])


def mean_of_potentials(values: Tensor) -> Tensor:
    """Logarithm `[A]` of the mean of exp(values `[A, M]`) over those that are there, NaN without any."""
    there = ~values.isnan()
    total = values.masked_fill(~there, -torch.inf).logsumexp(1)
    return torch.where(there.any(1), total - there.sum(1).log(), torch.nan)

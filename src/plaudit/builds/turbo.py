"""Distil `slots` into a generator that needs one or two network calls: `plaudit lab build slots-turbo`.

Two stages. *Regression* on pairs of a noise e and the teacher's endpoint x_0, the second round of rectified flow (arXiv
2209.03003): velocity e - x_0 at the two times that two steps visit. *Matching* of distributions (DMD, arXiv 2311.18828): a
critic learns the flow of the student's own samples, and they move to where the guided teacher's clean prediction differs
from the critic's; the regression stays on, as there.

Departures from DMD: both stages hold the two times, the second one at states that the student itself reaches; flow
networks in place of epsilon ones; L2 on latents in place of LPIPS on pictures.

Shape legend: B samples, * latent dimensions.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from plaudit import storage
from plaudit.builds.generators import FlowPlan
from plaudit.builds.training import (
    copy_of,
    export_weights,
    follow,
    log,
    make_optimizers,
    rate,
    restore_state,
    save_state,
    update,
)
from plaudit.errors import RunError
from plaudit.lab.scenes.check import check
from plaudit.lab.scenes.grammar import evaluation_prompts, sample_prompts
from plaudit.models.flow import EMPTY_PROMPT, Condition, Conditioning, clean_prediction, guided_velocity, per_sample
from plaudit.models.lab import LabFlowModel
from plaudit.sampling.noise import SampleKey, gaussian, numbered_keys
from plaudit.sampling.plan import deterministic_plan
from plaudit.sampling.rollout import draw

NAME = "slots-turbo"
HALFWAY = 0.5  # the second time of two steps
CHUNK = 64  # pairs that are drawn together
SMALLEST_SCALE = 0.01  # of the matching gradient, in latent units
EVALUATION_SEED, EVALUATION_STEP = 20_000_003, -1  # the noise of evaluations


@dataclass(frozen=True, kw_only=True)
class TurboPlan(FlowPlan):
    """How the teacher is distilled: `regression_steps`, at most half of all, come before the matching begins."""

    teacher_steps: int = 16
    guidance: float = 1.5
    num_pairs: int = 12_000
    regression_steps: int = 1_500
    regression_weight: float = 0.25  # while matching
    matching_rate: float = 0.33  # learning rate of the student while matching, in units of `adam_lr`
    halfway_share: float = 0.35  # of the samples


PLAN = TurboPlan(
    steps=2_900,
    batch=64,
    adam_lr=1e-3,
    muon_lr=None,
    time_mean=0.3,
    time_std=1.3,
    ema=0.995,
    warmup=100,
    decay_from=0.7,
)


@dataclass(frozen=True, kw_only=True)
class Pairs:
    """Noises, where the teacher takes them `[N, *]`, and the captions."""

    noise: Tensor
    endpoint: Tensor
    condition: Condition

    def select(self, rows: Tensor) -> Pairs:
        return Pairs(noise=self.noise[rows], endpoint=self.endpoint[rows], condition=self.condition.select(rows))


def guided(model: LabFlowModel, condition: Condition, guidance: float) -> Conditioning:
    return Conditioning(condition=condition, unconditional=model.encode([EMPTY_PROMPT]), guidance=guidance)


def endpoints(model: LabFlowModel, conditioning: Conditioning, keys: Sequence[SampleKey], steps: int) -> Tensor:
    """Clean latents `[B, *]` after so many Euler steps from the keys' initial noise."""
    plan = deterministic_plan(model.schedule(steps, None), len(keys))
    return draw(model, conditioning, plan, keys, tile=CHUNK).latents


def draw_pairs(teacher: LabFlowModel, plan: TurboPlan, seed: int, chunk: int) -> Pairs:
    """One chunk of pairs; a pure function of its arguments."""
    prompts = sample_prompts("train", CHUNK, np.random.default_rng([seed, chunk, 11]))
    keys, condition = numbered_keys(prompts, seed=seed, step=chunk), teacher.encode(prompts)
    return Pairs(
        noise=gaussian(keys, "initial", teacher.latent_shape),
        endpoint=endpoints(teacher, guided(teacher, condition, plan.guidance), keys, plan.teacher_steps),
        condition=condition,
    )


def load_pairs(teacher: LabFlowModel, plan: TurboPlan, seed: int, count: int, folder: Path) -> Pairs:
    """Pairs of `folder`, drawn into it when there are none."""
    made = {"seed": seed, "teacher_steps": plan.teacher_steps, "guidance": plan.guidance, "count": count}
    if not folder.exists():
        parts = [draw_pairs(teacher, plan, seed, chunk) for chunk in range(-(-count // CHUNK))]
        tensors = {
            "noise": torch.cat([part.noise for part in parts])[:count],
            "endpoint": torch.cat([part.endpoint for part in parts])[:count],
            "ids": torch.cat([part.condition.tensors["ids"] for part in parts])[:count],
        }
        storage.write_snapshot(folder, tensors, made)
    tensors, meta = storage.read_snapshot(folder)
    if meta != made:
        raise RunError(f"lab build {NAME}: {folder} holds pairs of {meta}; needed: {made}; give another --out")
    return Pairs(
        noise=tensors["noise"], endpoint=tensors["endpoint"], condition=Condition(tensors={"ids": tensors["ids"]})
    )


def regression_loss(student: LabFlowModel, pairs: Pairs, t: Tensor) -> Tensor:
    """Mean of (v(x_t, t) - (e - x_0))^2 at x_t = (1 - t) x_0 + t e."""
    spread = per_sample(t, pairs.noise)
    x_t = (1 - spread) * pairs.endpoint + spread * pairs.noise
    return (student.velocity(x_t, t, pairs.condition) - (pairs.noise - pairs.endpoint)).square().mean()


def student_samples(student: LabFlowModel, noise: Tensor, t: Tensor, condition: Condition) -> Tensor:
    """Clean latents `[B, *]` from the noise where t = 1, elsewhere from the state that a first step reached."""
    first, later = noise.clone(), t < 1
    with torch.no_grad():
        v = student.velocity(noise[later], torch.ones_like(t[later]), condition.select(later))
        first[later] -= per_sample(1 - t[later], v) * v
    return clean_prediction(first, student.velocity(first, t, condition), t)


def matching_gradient(x0: Tensor, noise: Tensor, t: Tensor, teacher_v: Tensor, critic_v: Tensor) -> Tensor:
    """Gradient `[B, *]` of the divergence between samples and teacher at x_t = (1 - t) x_0 + t e (DMD eq. 7 and 8).

    The difference of the clean predictions, critic minus teacher, over the mean distance of the sample from the teacher's.
    """
    spread = per_sample(t, x0)
    x_t = (1 - spread) * x0 + spread * noise
    real = clean_prediction(x_t, teacher_v, t)
    scale = (x0 - real).abs().flatten(1).mean(1).clamp(min=SMALLEST_SCALE)
    return (clean_prediction(x_t, critic_v, t) - real) / per_sample(scale, x0)


def times_of(share: float, rng: np.random.Generator, count: int) -> Tensor:
    """`[count]` times, a share of them halfway and the others 1."""
    return torch.from_numpy(np.where(rng.random(count) < share, HALFWAY, 1.0)).float()


def regress(student: LabFlowModel, pairs: Pairs, plan: TurboPlan, rng: np.random.Generator) -> Tensor:
    rows = torch.from_numpy(rng.integers(len(pairs.noise), size=plan.batch))
    return regression_loss(student, pairs.select(rows), times_of(plan.halfway_share, rng, plan.batch))


@dataclass(frozen=True, kw_only=True)
class Matching:
    """What one step of the second stage minimises: `student` by the student's weights, `critic` by the critic's."""

    student: Tensor
    critic: Tensor


def match(
    student: LabFlowModel, critic: LabFlowModel, teacher: LabFlowModel, plan: TurboPlan, seed: int, step: int
) -> Matching:
    """Losses on fresh captions and noise; a pure function of weights, seed and step."""
    rng = np.random.default_rng([seed, step, 12])
    prompts = sample_prompts("train", plan.batch, rng)
    keys, condition = numbered_keys(prompts, seed=seed, step=step), student.encode(prompts)
    noise = gaussian(keys, "student", student.latent_shape)
    x0 = student_samples(student, noise, times_of(plan.halfway_share, rng, plan.batch), condition)
    again = gaussian(keys, "matching", student.latent_shape)
    t = torch.sigmoid(torch.from_numpy(rng.normal(plan.time_mean, plan.time_std, plan.batch)).float()).clamp(0.02, 0.98)
    spread = per_sample(t, noise)
    x_t = ((1 - spread) * x0 + spread * again).detach()
    critic_v = critic.velocity(x_t, t, condition)
    with torch.no_grad():
        teacher_v = guided_velocity(teacher, x_t, t, guided(teacher, condition, plan.guidance))
        gradient = matching_gradient(x0, again, t, teacher_v, critic_v)
    return Matching(student=(gradient * x0).mean(), critic=(critic_v - (again - x0.detach())).square().mean())


def build_turbo(out: Path, *, steps: int | None = None, seed: int = 0, install: bool = False) -> Path:
    """Distil into `out`, going on from its last checkpoint when there is one; measures, and returns the weights file."""
    plan, steps = PLAN, steps or PLAN.steps
    teacher, student, critic = (LabFlowModel("slots") for _ in range(3))
    teacher.network.requires_grad_(False)
    both = nn.ModuleDict({"student": student.network, "critic": critic.network})
    average = copy_of(student.network)
    optimizers = {name: make_optimizers(network, plan)["adam"] for name, network in both.items()}
    first = restore_state(out, both, average, optimizers)
    pairs = load_pairs(teacher, plan, seed, min(plan.num_pairs, steps * plan.batch), out / "pairs")
    started, regression_steps = time.monotonic(), min(plan.regression_steps, steps // 2)
    for step in range(first, steps):
        matching = step >= regression_steps
        stage_rate = (plan.matching_rate if matching else 1.0) * rate(plan, steps, step)
        loss = regress(student, pairs, plan, np.random.default_rng([seed, step, 13]))
        entry = {"step": step + 1, "steps": steps, "regression": loss.item()}
        if matching:
            losses = match(student, critic, teacher, plan, seed, step)
            update(critic.network, [(optimizers["critic"], plan.adam_lr)], losses.critic)
            loss = plan.regression_weight * loss + losses.student
            entry |= {"critic": losses.critic.item()}
        update(student.network, [(optimizers["student"], plan.adam_lr * stage_rate)], loss)
        follow(average, student.network, plan, step)
        if (step + 1) % plan.log_every == 0 or step + 1 == steps:
            entry |= {"seconds": round(time.monotonic() - started, 1)} | _accuracies(average, count=120)
            log(out, entry)
        if (step + 1) % plan.save_every == 0 or step + 1 == steps:
            save_state(out, step + 1, both, average, optimizers)
    path = export_weights(out, NAME, average, install)
    measured = {f"teacher_exact_at_{n}_steps": accuracy(teacher, n) for n in (1, 2, 10)} | _accuracies(
        average, count=600
    )
    log(out, measured)
    return path


def accuracy(model: LabFlowModel, steps: int, count: int = 600) -> float:
    """Share of held-out captions drawn exactly (`scene_exact`), with the prompts and the noise of evaluations."""
    prompts = evaluation_prompts("heldout", count)
    keys = numbered_keys(prompts, seed=EVALUATION_SEED, step=EVALUATION_STEP)
    images = model.decode(endpoints(model, Conditioning(condition=model.encode(prompts)), keys, steps))
    return sum(verdict.correct for verdict in check(images, prompts)) / count


def _accuracies(average: dict[str, Tensor], count: int) -> dict[str, float]:
    shown = LabFlowModel("slots")
    shown.network.load_state_dict(average)
    return {f"exact_at_{steps}_steps": accuracy(shown, steps, count) for steps in (1, 2, 4)}

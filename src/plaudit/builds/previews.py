"""Fine-tune the proxy on previews: `plaudit lab build previews-pixels` (TTSnap's self-distillation, S090).

For trajectories of the generator, R(preview at step s, caption, t_s) learns to be the frozen proxy's R(final picture): mean
squared error, from cleaner previews to noisier ones, a new AdamW for every step of this curriculum with its rate falling
linearly to half. Departures: R is the logit, since the proxy's probabilities of good pictures all lie close to 1, and their
squared error does not see what decides ranks; one network for all steps (see `plaudit.rewards.learned.noise_aware`), which is
why half of every batch repeats steps that were learnt before; the rate fits a small network. Later steps have no stage
(`UNCHANGED`): their previews were ranked worse after training on them than by the proxy, whether it learnt logits or
probabilities.

Shape legend: N trajectories, S previews of each, B batch.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from plaudit.builds.training import export_weights, write_measured
from plaudit.data.prompt import Prompt
from plaudit.lab.scenes.grammar import evaluation_prompts, sample_prompts, tokenise
from plaudit.models.conditioning import PromptEncoder
from plaudit.models.flow import FlowModel, clean_prediction
from plaudit.models.lab import LabFlowModel
from plaudit.rewards.learned.noise_aware import UNCHANGED, PreviewNetwork, from_proxy
from plaudit.rewards.learned.proxy import SceneProxy
from plaudit.sampling.kernels import transition
from plaudit.sampling.noise import gaussian, numbered_keys

TRAINING_STEP, MEASURE_STEP = -90, -91  # step numbers of the keys, which no search and no run draws with
SEEDS = 8
SATURATED = 1e-4  # probabilities closer than this to 0 or 1 are as good as it


@dataclass(frozen=True, kw_only=True)
class RewardTensor:
    """Scores of previews `steps [P, N, S]` and of final pictures `final [P, N]`, in float64; NaN where one is missing.
    `gold` is another judge's view of the final pictures."""

    steps: Tensor
    final: Tensor
    gold: Tensor | None = None

    def __post_init__(self) -> None:
        assert self.steps.shape[:2] == self.final.shape, (self.steps.shape, self.final.shape)


@dataclass(frozen=True, kw_only=True)
class PreviewPlan:
    """One stage for every step but the first, which shows nothing, and those from `UNCHANGED` on."""

    sampling_steps: int = 10
    trajectories: int = 3_000
    steps_per_stage: int = 150
    batch: int = 100
    rate: float = 3e-4
    clip: float = 5.0
    measured: int = 60  # held-out captions, of SEEDS trajectories each


@dataclass(frozen=True, kw_only=True)
class Previews:
    """Previews `[N, S, 3, H, W]` in 8 bits at times `[S]`, from noisy to clean, with captions and the logits they are to have."""

    pictures: Tensor
    times: Tensor
    ids: Tensor
    target: Tensor  # logits

    def batch(self, rows: Tensor, steps: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The network's inputs."""
        return self.pictures[rows, steps].float() / 255, self.ids[rows], self.times[steps]


@torch.no_grad()
def draw_previews(
    model: FlowModel, prompts: list[Prompt], steps: int, step: int, seed: int, chunk: int = 100
) -> Previews:
    """One trajectory per prompt; a prompt that comes again counts its trajectories."""
    times, teacher = model.schedule(steps, None), SceneProxy()
    keys = numbered_keys(prompts, seed=seed, step=step)
    pictures, targets = [], []
    for start in range(0, len(prompts), chunk):
        asked, own = prompts[start : start + chunk], keys[start : start + chunk]
        condition = PromptEncoder(model)(asked, 1.0).condition
        x, shown = gaussian(own, "initial", model.latent_shape), []
        for k in range(steps):
            t, t_next = times[k].expand(len(x)), times[k + 1].expand(len(x))
            v = model.velocity(x, t, condition)
            if shows_something(times[k]):
                shown.append(_bytes(model.decode(clean_prediction(x, v, t))))
            x = transition("ode", x, v, t, t_next, torch.zeros_like(t)).mean
        pictures.append(torch.stack(shown, dim=1))
        targets.append(teacher([prompt.text for prompt in asked], model.decode(x)))
    return Previews(
        pictures=torch.cat(pictures),
        times=times[:-1][shows_something(times[:-1])],
        ids=torch.from_numpy(tokenise([prompt.text for prompt in prompts])),
        target=torch.logit(torch.cat(targets), eps=SATURATED).float(),
    )


def shows_something(t: Tensor) -> Tensor:
    """Whether the preview at this time is neither noise nor left to the unchanged proxy."""
    return (t > UNCHANGED) & (t < 1)


def _bytes(pictures: Tensor) -> Tensor:
    return (pictures.clamp(0, 1) * 255).round().to(torch.uint8)


def train(network: PreviewNetwork, data: Previews, plan: PreviewPlan, rng: np.random.Generator) -> list[float]:
    """The curriculum; the mean loss of each stage's own half."""
    N, S = data.pictures.shape[:2]
    losses = []
    for newest in reversed(range(S)):
        optimizer = torch.optim.AdamW(network.parameters(), lr=plan.rate)
        schedule = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.5, total_iters=plan.steps_per_stage)
        total = 0.0
        for _ in range(plan.steps_per_stage):
            rows = torch.from_numpy(rng.integers(N, size=plan.batch))
            steps = torch.from_numpy(rng.integers(newest, S, size=plan.batch))
            steps[: plan.batch // 2] = newest
            squared = (network(*data.batch(rows, steps)) - data.target[rows]).square()
            optimizer.zero_grad(set_to_none=True)
            squared.mean().backward()
            torch.nn.utils.clip_grad_norm_(network.parameters(), plan.clip)
            optimizer.step()
            schedule.step()
            total += squared[: plan.batch // 2].mean().item()
        losses.append(total / plan.steps_per_stage)
    return losses


@torch.no_grad()
def predicted(network: PreviewNetwork, data: Previews) -> Tensor:
    """Logits `[N, S]` of all previews."""
    N, S = data.pictures.shape[:2]
    every = torch.arange(N)
    columns = [network(*data.batch(every, torch.full((N,), s))) for s in range(S)]
    return torch.stack(columns, dim=1).double()


def measure(networks: dict[str, PreviewNetwork], data: Previews, seeds: int) -> dict[str, list[float]]:
    """Per step the mean over prompts of Spearman's correlation of the preview's score with the final picture's. Rows are
    `seeds` trajectories of each prompt after each other."""
    final = data.target.double().unflatten(0, (-1, seeds))
    found: dict[str, list[float]] = {"t": [round(t, 4) for t in data.times.tolist()]}
    for name, network in networks.items():
        tensor = RewardTensor(steps=predicted(network, data).unflatten(0, (-1, seeds)), final=final)
        found[name] = [round(value, 4) for value in rank_correlation(tensor).tolist()]
    return found


def build_previews(
    name: str,
    out: Path,
    *,
    steps: int | None = None,
    seed: int = 0,
    install: bool = False,
    plan: PreviewPlan | None = None,
) -> Path:
    """Draw, train, measure on held-out captions, and write the weights with what was measured beside them. `steps` are
    those of each stage."""
    chosen = plan or PreviewPlan()
    if steps is not None:
        chosen = replace(chosen, steps_per_stage=steps)
    torch.manual_seed(seed)
    model, rng = LabFlowModel(name), np.random.default_rng([seed, 90])
    data = draw_previews(
        model, sample_prompts("train", chosen.trajectories, rng), chosen.sampling_steps, TRAINING_STEP, seed
    )
    network = from_proxy().train()
    losses = train(network, data, chosen, rng)
    heldout = [prompt for prompt in evaluation_prompts("heldout", chosen.measured) for _ in range(SEEDS)]
    trial = draw_previews(model, heldout, chosen.sampling_steps, MEASURE_STEP, seed)
    measured = measure({"before": from_proxy(), "after": network.eval()}, trial, SEEDS) | {"loss": losses}
    write_measured(out, f"previews-{name}", measured)
    return export_weights(out, f"previews-{name}", network.state_dict(), install)


def rank_correlation(tensor: RewardTensor) -> Tensor:
    """Spearman's correlation `[S]` of each step's score with the final one among the seeds of a prompt, mean over prompts.
    Prompts all of whose seeds score the same have none and are left out, as are those with a missing score."""
    there = ~(tensor.steps.isnan().any(2) | tensor.final.isnan()).any(1)
    tensor = RewardTensor(steps=tensor.steps[there], final=tensor.final[there])
    return torch.stack(
        [_mean_correlation(_ranks(tensor.steps[:, :, s]), _ranks(tensor.final)) for s in range(tensor.steps.shape[2])]
    )


def _ranks(score: Tensor) -> Tensor:
    """Ranks `[P, N]`; equal scores share their average one."""
    below = (score[:, None, :] < score[:, :, None]).sum(2)
    equal = (score[:, None, :] == score[:, :, None]).sum(2)
    return below.double() + (equal.double() + 1) / 2


def _mean_correlation(a: Tensor, b: Tensor) -> Tensor:
    a, b = a - a.mean(1, keepdim=True), b - b.mean(1, keepdim=True)
    spread = (a.square().sum(1) * b.square().sum(1)).sqrt()
    varied = spread > 0
    if not varied.any():
        return torch.tensor(torch.nan, dtype=torch.float64)
    return ((a * b).sum(1)[varied] / spread[varied]).mean()

"""Small flow models and batches on which tests can see everything."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor, nn

from plaudit.data.prompt import Prompt
from plaudit.models.flow import Condition, Conditioning, shifted_times
from plaudit.objectives.batch import Batch
from plaudit.recipe.load import load
from plaudit.recipe.sampling import Sampler
from plaudit.recipe.schema import Recipe
from plaudit.sampling.noise import SampleKey
from plaudit.sampling.plan import stochastic_plan
from plaudit.sampling.rollout import draw
from plaudit.shaping.credit import Credit
from plaudit.train.collect import expand_groups
from plaudit.train.setup import Setup

CAPTIONS = 11


class ToyNetwork(nn.Module):
    """Velocity of a flat latent from the latent, the time and a caption number; 0 is the empty caption."""

    def __init__(self, size: int, width: int) -> None:
        super().__init__()
        self.enter = nn.Linear(size + 2, width)
        self.caption = nn.Embedding(CAPTIONS, width)
        self.leave = nn.Linear(width, size)

    def forward(self, x: Tensor, t: Tensor, caption: Tensor) -> Tensor:
        flat = torch.cat([x.flatten(1), t[:, None], t[:, None] ** 2], dim=1)
        h = torch.tanh(self.enter(flat) + self.caption(caption))
        return self.leave(h).reshape(x.shape)


class ToyFlowModel:
    """Counts its network calls: `rows` lists the batch size of each."""

    lora_targets = ("enter", "leave")

    def __init__(self, latent_shape: tuple[int, ...] = (3, 2, 2), width: int = 16, seed: int = 0) -> None:
        size = torch.Size(latent_shape).numel()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.network: nn.Module = ToyNetwork(size, width)
        self.latent_shape = tuple(latent_shape)
        self.rows: list[int] = []

    def encode(self, prompts: Sequence[Prompt]) -> Condition:
        numbers = [
            0 if not p.text else 1 + hashlib.sha256(p.text.encode()).digest()[0] % (CAPTIONS - 1) for p in prompts
        ]
        return Condition(tensors={"caption": torch.tensor(numbers)})

    def velocity(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        assert len(x) == len(t) == len(condition)
        self.rows.append(len(x))
        return self.network(x, t, condition.tensors["caption"])

    def decode(self, x0: Tensor) -> Tensor:
        pictures = torch.sigmoid(x0.reshape(len(x0), 3, -1).mean(2))
        return pictures[:, :, None, None].expand(-1, 3, 4, 4).contiguous()

    def latents(self, pictures: Tensor) -> Tensor:
        colours = pictures.mean((2, 3)).clamp(0.02, 0.98).logit()
        return (
            colours[:, :, None]
            .expand(-1, -1, self.latent_shape[1] * self.latent_shape[2])
            .reshape(-1, *self.latent_shape)
        )

    def schedule(self, steps: int, shift: float | None) -> Tensor:
        return shifted_times(steps, shift or 1.0)

    def save(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        save_file({k: v.contiguous() for k, v in self.network.state_dict().items()}, folder / "toy.safetensors")


def build(seed: int = 0) -> ToyFlowModel:
    """For recipes: `model: {type: custom, factory: tests.reference.toys:build}`."""
    return ToyFlowModel(seed=seed)


class ExactFlow:
    """A flow model without parameters around a velocity function of (x, t)."""

    def __init__(self, velocity, latent_shape: tuple[int, ...] = (1,)) -> None:
        self.network: nn.Module = nn.Identity()
        self.latent_shape = latent_shape
        self._velocity = velocity

    def velocity(self, x: Tensor, t: Tensor, condition: Condition) -> Tensor:
        return self._velocity(x, t)


def prompts(count: int) -> list[Prompt]:
    return [Prompt(id=f"p{i}", text=f"caption number {i}") for i in range(count)]


def keys(count: int, *, seed: int = 0, step: int = 0, prompt: str = "p") -> list[SampleKey]:
    return [SampleKey(seed=seed, step=step, prompt=prompt, index=i) for i in range(count)]


def conditioning(model: ToyFlowModel, asked: Sequence[Prompt], guidance: float = 1.0) -> Conditioning:
    empty = model.encode([Prompt(id="", text="")])
    return Conditioning(condition=model.encode(asked), unconditional=empty, guidance=guidance)


def rollout_batch(
    model: ToyFlowModel, sampler: Sampler, *, groups: int = 3, size: int = 4, seed: int = 0, density: str = "exact"
) -> Batch:
    """A drawn batch with advantages of both signs; every sample valid and informative."""
    members, group, sample_keys = expand_groups(prompts(groups), size, seed, 0)
    first = [sample_keys[i - i % size] for i in range(len(sample_keys))]
    plan = stochastic_plan(sampler, model.schedule(sampler.steps, sampler.shift), sample_keys, first)
    condition = conditioning(model, members, sampler.guidance)
    drawn = draw(model, condition, plan, sample_keys, tile=sampler.tile, density=density)
    count = len(members)
    return Batch(
        samples=drawn,
        prompts=tuple(members),
        keys=tuple(sample_keys),
        group=group,
        score=torch.sin(torch.arange(count).double()),
        scores={"toy": torch.sin(torch.arange(count).double())},
        credit=Credit(
            value=torch.cos(torch.arange(count) * 1.7 + 0.3) * 1.5, valid=torch.ones(count, dtype=torch.bool)
        ),
        informative=torch.ones(count, dtype=torch.bool),
    )


def with_samples(batch: Batch, **changes: Any) -> Batch:
    """The batch with another trace or conditioning."""
    return dataclasses.replace(batch, samples=dataclasses.replace(batch.flow, **changes))


def with_trace(batch: Batch, **changes: Any) -> Batch:
    return with_samples(batch, trace=dataclasses.replace(batch.flow.trace, **changes))


def perturb(model: ToyFlowModel, size: float = 0.05, seed: int = 5) -> None:
    """Other weights in place, so that a policy differs from what drew the samples."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.network.parameters():
            parameter.add_(size * torch.randn(parameter.shape, generator=generator))


def gradients(model: ToyFlowModel) -> Tensor:
    """All gradients as one vector; parameters without one count as zero."""
    parts = [(p.grad if p.grad is not None else torch.zeros_like(p)).flatten() for p in model.network.parameters()]
    return torch.cat(parts)


# --- runs ------------------------------------------------------------------------------------------------------------


def redness(prompts: list[str], outputs: Tensor) -> list[float]:
    """How close the red channel is to what the caption's number asks for."""
    wanted = [(int(text.split()[-1]) % 3) / 2 for text in prompts]
    return [1 - abs(w - picture[0].mean().item()) for w, picture in zip(wanted, outputs, strict=True)]


def soft_redness(prompts: list[str], outputs: Tensor) -> Tensor:
    """The same as a smooth function of the pictures."""
    wanted = torch.tensor([(int(text.split()[-1]) % 3) / 2 for text in prompts])
    return 1 - (wanted - outputs[:, 0].mean((1, 2))).square()


def toy_recipe(folder: Path, *layers: dict) -> Recipe:
    """A run of three steps on the toy model that takes a tenth of a second, in `folder`/runs/toy."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, numbers in (("train", range(7)), ("heldout", range(20, 24))):
        settle(folder / f"{name}.txt", "".join(f"caption number {i}\n" for i in numbers).encode())
    base = {
        "name": "toy",
        "model": {"type": "custom", "factory": "tests.reference.toys:build"},
        "prompts": {"type": "file", "train": str(folder / "train.txt"), "heldout": str(folder / "heldout.txt")},
        "rewards": {"red": "tests.reference.toys:redness"},
        "sampler": {"steps": 3},
        "objective": {"type": "nft", "old_decay_rate": 0.1},
        "train": {"steps": 3, "minutes": None, "lr": 1e-2}
        | {"prompts_per_step": 2, "samples_per_prompt": 4, "micro_batch": 3},
        "evaluate": {"reward": "tests.reference.toys:redness", "every": 2, "prompts": 3, "final_prompts": 4}
        | {"sampler": {"steps": 2}},
        "run": {"folder": str(folder / "runs"), "save_every": 1, "threads": 1},
    }
    return load([base, *layers])


def png(colour: tuple[int, int, int]) -> bytes:
    Image.new("RGB", (4, 4), colour).save(written := io.BytesIO(), format="PNG")
    return written.getvalue()


def settle(path: Path, content: bytes) -> None:
    """At once, as several processes make the same files in the same folder."""
    begun = path.with_name(f"{path.name}.{os.getpid()}")
    begun.write_bytes(content)
    begun.replace(path)


def paired(folder: Path, pairs: int = 12) -> dict[str, Any]:
    """Prompts with pairs of pictures on disk, of which the better has more of the red that the caption asks for."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(pairs):
        good = (i % 3) / 2
        names = {"chosen": good, "rejected": (good + 0.6) % 1.2}
        for name, red in names.items():
            colour = (round(255 * min(red, 1)), 60 + 10 * i, 128)
            settle(folder / f"{i}_{name}.png", png(colour))
        files = {name: f"{i}_{name}.png" for name in names}
        rows.append(
            {"prompt": f"caption number {i}", **files, "score_chosen": 0.9, "score_rejected": 0.1, "margin": 0.8}
        )
    settle(folder / "pairs.jsonl", "".join(json.dumps(row) + "\n" for row in rows).encode())
    return {"type": "file", "train": str(folder / "pairs.jsonl"), "layout": "preferences"}


def paired_recipe(folder: Path, *layers: dict) -> Recipe:
    offline = {"train": {"samples_per_prompt": 1, "prompts_per_step": 6, "micro_batch": 4}}
    return toy_recipe(folder, {"prompts": paired(folder / "pairs"), "rewards": {}}, offline, *layers)


class Asked:
    """A prompt source that always asks the same."""

    def __init__(self, asked: Sequence[Prompt]) -> None:
        self.asked = list(asked)

    def batch(self, step: int, count: int, seed: int) -> list[Prompt]:
        return list(self.asked)

    def evaluation(self, count: int) -> dict[str, list[Prompt]]:
        return {"heldout": self.asked[:count]}


def asking(setup: Setup, asked: Sequence[Prompt]) -> Setup:
    """The set-up with these prompts in every step."""
    train = setup.recipe.train.model_copy(update={"prompts_per_step": len(asked)})
    return dataclasses.replace(setup, recipe=setup.recipe.model_copy(update={"train": train}), prompts=Asked(asked))


GRPO = {
    "sampler": {"kernel": "flow_sde", "level": 0.7, "steps": 4},
    "objective": {"type": "grpo", "kl": {"weight": 0.01}},
}
EMA = {"train": {"ema": 0.9}}
LORA = {"model": {"lora": {"rank": 2, "alpha": 4}}}

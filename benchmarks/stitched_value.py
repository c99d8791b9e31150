"""A stitched value model of the lab (StitchVM, S056): `python benchmarks/stitched_value.py build|correlation|guidance`.

The generator is `pixels`, the reward the lab encoder's cosine with the caption. `build` trains, with one budget of steps and
pictures, the stitched model at the seam of least residual (`paper`), one at the earliest block within 1 % of it (`early`), and
the encoder's own tower from scratch on noisy latents with the time as a further input (`scratch`), and writes them to
build/values/. `correlation` compares them and the reward of the preview with E[r(z_0) | z_t], the mean reward of stochastic
completions, per noise level: latents of held-out pictures, half of them with a caption of another picture, no caption given to
the generator. `guidance` prints reward, truth and seconds of guided sampling, by the slope of each value.
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from plaudit.builds.stitch import ValuePlan, groups, seam_of, stitched, train
from plaudit.lab.encoder_networks import DualEncoder, PictureTower
from plaudit.lab.networks import time_features, to_pixel_latents
from plaudit.lab.scenes.grammar import evaluation_prompts
from plaudit.lab.scenes.render import rasterise, sample_scenes
from plaudit.models.conditioning import PromptEncoder
from plaudit.models.flow import EMPTY_PROMPT
from plaudit.models.lab import LabFlowModel
from plaudit.recipe.rewards import RewardConfig
from plaudit.rewards.encoders.lab import LabEncoder, read_words
from plaudit.rewards.learned.stitched import Seen, StitchedValue
from plaudit.rewards.load import load_reward
from plaudit.rewards.suite import load_suite
from plaudit.sampling.kernels import transition
from plaudit.search.budget import Budget
from plaudit.search.flow.guidance import Guidance
from plaudit.search.flow.task import FlowTask

FOLDER = Path("build/values")
SLACK = {"early": 0.01, "paper": 0.0}
LEVELS = (0.3, 0.5, 0.7, 0.9)


class NoisyTower(PictureTower):
    """The encoder's picture tower for noisy latents; the time joins the patches."""

    def __init__(self, width: int = 96) -> None:
        super().__init__(width)
        self.time = nn.Linear(width, width)

    def forward(self, images: Tensor, t: Tensor) -> Tensor:  # type: ignore[override]
        patches = (
            self.stem(images).flatten(2).transpose(1, 2) + self.time(time_features(t, self.time.in_features))[:, None]
        )
        seen = self.layers(patches + self.grid + self.place_in(self.places))
        return self.norm(seen) + self.place_out(self.places)


class Scratch(nn.Module):
    """A noisy encoder that begins with nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.picture, self.picture_out = NoisyTower(), DualEncoder().picture_out

    def forward(self, z: Tensor, t: Tensor) -> Seen:
        tokens = self.picture_out(self.picture(z, t))
        return Seen(embedding=nn.functional.normalize(tokens.mean(1), dim=-1), tokens=tokens)


def frozen() -> tuple[LabFlowModel, DualEncoder]:
    model = LabFlowModel("pixels")
    model.network.requires_grad_(False)
    return model, LabEncoder().network


def build(seed: int) -> None:
    model, encoder = frozen()
    for name, slack in SLACK.items():
        torch.manual_seed(seed)
        plan, rng = ValuePlan(slack=slack), np.random.default_rng([seed, 0])
        seam, started = seam_of(model.network, encoder, plan, rng), time.process_time()
        value = stitched(model.network, encoder, seam)
        losses = train(lambda z, t, value=value: value(model.network, z, t), groups(value, plan), encoder, plan, rng)
        value.save(FOLDER / f"{name}.safetensors")
        residuals = [[round(x, 4) for x in row] for row in seam.residuals]
        _say(name, losses, started, block=seam.block, layer=seam.layer, residuals=residuals)
    plan, rng = ValuePlan(), np.random.default_rng([seed, 0])
    torch.manual_seed(seed)
    scratch, started = Scratch(), time.process_time()
    losses = train(scratch, [{"params": list(scratch.parameters()), "lr": plan.rate * 3}], encoder, plan, rng)
    save_file(scratch.state_dict(), FOLDER / "scratch.safetensors")
    _say("scratch", losses, started)


def _say(name: str, losses: list[float], started: float, **more: object) -> None:
    ends = {"first": np.mean(losses[:10]), "last": np.mean(losses[-50:])}
    rounded = {key: round(float(value), 4) for key, value in ends.items()}
    print(json.dumps({"name": name, "cpu_s": round(time.process_time() - started)} | rounded | more), flush=True)


# --- correlation -----------------------------------------------------------------------------------------------------


@torch.no_grad()
def completions(model: LabFlowModel, z: Tensor, t: float, count: int, steps: int, rng: np.random.Generator) -> Tensor:
    """Pictures `[count, B, 3, H, W]` that latents at time `t` become, by the SDE without a caption."""
    x = z.repeat(count, 1, 1, 1)
    condition = model.encode([EMPTY_PROMPT]).expand(len(x))
    grid = torch.linspace(t, 0.0, steps + 1)
    for now, then in itertools.pairwise(grid):
        at, to = now.expand(len(x)), then.expand(len(x))
        step = transition("ddim_eta", x, model.velocity(x, at, condition), at, to, torch.ones(len(x)))
        noise = torch.from_numpy(rng.standard_normal(x.shape, dtype=np.float32))
        x = step.mean + step.std[:, None, None, None] * noise
    return model.decode(x).unflatten(0, (count, -1))


@torch.no_grad()
def correlation(seed: int, pictures: int = 32, count: int = 6, steps: int = 5) -> None:
    model, encoder = frozen()
    rng = np.random.default_rng([seed, 1])
    prompts = evaluation_prompts("heldout", pictures)
    clean = to_pixel_latents(rasterise(sample_scenes(prompts, rng)))
    asked = [p.text if i % 2 else prompts[(i + 7) % pictures].text for i, p in enumerate(prompts)]
    said = encoder.embed_texts(read_words(asked, "the benchmark"))
    scratch = Scratch().eval()
    scratch.load_state_dict(load_file(FOLDER / "scratch.safetensors"))
    values = {name: StitchedValue.load(FOLDER / f"{name}.safetensors") for name in SLACK}
    print(f"seed {seed}: correlation with the mean reward of {count} completions (of itself: that of two halves)")
    print("   t  " + "".join(f"{name:>10}" for name in (*SLACK, "preview", "scratch", "halves")))
    for t in LEVELS:
        noise = torch.from_numpy(rng.standard_normal(clean.shape, dtype=np.float32))
        z, at = (1 - t) * clean + t * noise, torch.full((pictures,), t)
        ends = completions(model, z, t, count, steps, rng)
        rewards = (encoder.embed_images(ends.flatten(0, 1)).unflatten(0, (count, -1)) * said).sum(-1)
        v = model.velocity(z, at, model.encode([EMPTY_PROMPT]).expand(pictures))
        guesses = {name: value.score(model.network, z, at, asked) for name, value in values.items()}
        guesses["preview"] = (encoder.embed_images(model.decode(z - t * v)) * said).sum(-1)
        guesses["scratch"] = (scratch(z, at).embedding * said).sum(-1)
        found = [_correlation(guess, rewards.mean(0)) for guess in guesses.values()]
        found.append(_correlation(rewards[::2].mean(0), rewards[1::2].mean(0)))
        print(f"{t:5.1f} " + "".join(f"{value:10.3f}" for value in found), flush=True)


def _correlation(a: Tensor, b: Tensor) -> float:
    return float(np.corrcoef(a.double().numpy(), b.double().numpy())[0, 1])


# --- guidance --------------------------------------------------------------------------------------------------------


def guidance(seed: int, prompts: int = 12, steps: int = 10) -> None:
    model, _ = frozen()
    suite = load_suite({"similar": RewardConfig(type="encoder_similarity")})
    truth = load_reward("scene_exact", RewardConfig(type="scene_exact"))
    asked = evaluation_prompts("heldout", prompts)
    print(f"seed {seed}: one guided sample of each of {prompts} prompts, {steps} steps")
    print("value    strength   reward   truth  seconds  of them backward")
    for name in ("preview", *SLACK):
        value = name if name == "preview" else str(FOLDER / f"{name}.safetensors")
        for strength in (0.0, 10.0, 30.0):
            if strength == 0 and name != "preview":
                continue
            task = FlowTask(
                model,
                asked,
                PromptEncoder(model)(asked, 1.0),
                suite,
                Budget(network_calls=9999),
                times=model.schedule(steps, None),
                seed=seed,
                tile=prompts,
            )
            with torch.no_grad():
                drawing = Guidance(candidates=1, strengths=(strength,), value=value).run(task)
                next(drawing)  # the plain samples
                started, found = time.perf_counter(), list(drawing)
            seconds, slopes = time.perf_counter() - started, task.ledger.total_seconds()["gradient_calls"]
            outputs, order = (torch.cat([getattr(one, key) for one in found]) for key in ("outputs", "prompt"))
            right = truth([asked[p] for p in order.tolist()], outputs)
            reward = torch.cat([one.score for one in found]).mean().item()
            exact = np.mean([score.value for score in right])
            print(f"{name:8} {strength:8.0f} {reward:8.3f} {exact:7.3f} {seconds:8.2f} {slopes:8.2f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("what", choices=("build", "correlation", "guidance"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.what == "build":
        build(options.seeds[0])
        return
    for seed in options.seeds:
        correlation(seed) if options.what == "correlation" else guidance(seed)


if __name__ == "__main__":
    main()

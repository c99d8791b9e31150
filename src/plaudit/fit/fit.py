"""Fitting a reward: pairs -> scores -> loss, measured on held-out pairs before, on the way and after."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from plaudit import storage
from plaudit.errors import RecipeError, RunError
from plaudit.fit.data import PicturePairs, Split, pairs_of
from plaudit.fit.losses import losses
from plaudit.ranks import ALONE, Ranks
from plaudit.recipe.fit import Fit
from plaudit.recipe.load import Source, as_recipe
from plaudit.recipe.schema import Recipe
from plaudit.rewards.learned.fitted import ABOUT, WEIGHTS, RewardNetwork
from plaudit.runs.display import Display, Metrics
from plaudit.runs.folder import RunFolder
from plaudit.runs.record import HELDOUT, PAIR_ORDER
from plaudit.statistics import Items, mean_interval, paired_gain
from plaudit.train.checkpoint import Progress, State
from plaudit.train.run import RunResult, Stepped, run
from plaudit.train.trainable import Trainable
from plaudit.version import __version__


def fit_reward(
    recipe: Recipe | Source, *, resume: bool = False, overwrite: bool = False, display: Display | None = None
) -> RunResult:
    """`plaudit.fit` but for the report."""
    recipe = as_recipe(recipe, "fit")
    if recipe.fit is None:
        raise RecipeError(
            "fit: the recipe says nothing of it; give it `fit: {data: {type: scenes}}`, or start from scenes-reward"
        )
    made = partial(prepare, recipe, recipe.fit)
    return run(recipe, ALONE, made, resume=resume, overwrite=overwrite, display=display)


def prepare(recipe: Recipe, fit: Fit) -> Fitting:
    if recipe.run.threads:
        torch.set_num_threads(recipe.run.threads)
    data = pairs_of(fit, heldout=recipe.evaluate.final_prompts, seed=recipe.run.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.run.seed)
        network = RewardNetwork(fit)
    trainable = Trainable(network)
    trainable.optimise(recipe.train)
    return Fitting(recipe=recipe, fit=fit, data=data, trainable=trainable, measured={})


@dataclass(frozen=True, kw_only=True)
class Fitting:
    """What `run` runs. `measured` holds the orders found before and after."""

    recipe: Recipe
    fit: Fit
    data: Split
    trainable: Trainable
    measured: dict[str, np.ndarray]
    ranks: Ranks = ALONE

    @property
    def network(self) -> RewardNetwork:
        network = self.trainable.network
        assert isinstance(network, RewardNetwork)
        return network

    def state(self) -> State:
        before = self.measured.get("before", np.array([])).tolist()
        return State(tensors=self.trainable.state(), meta={"result": "current", "before": before})

    def load_state(self, state: State) -> None:
        self.trainable.load_state(state.tensors)
        self.measured["before"] = np.array(state.meta["before"])

    def start(self, folder: RunFolder, display: Display) -> Progress:
        display.say(f"{len(self.data.train)} pairs to learn from, {len(self.data.heldout)} held out")
        self._measure(folder, display, 0, "before")
        return Progress()

    def step(self, progress: Progress) -> Stepped:
        started = time.perf_counter()
        rng = np.random.default_rng([self.recipe.run.seed, progress.step, 63])
        rows = torch.from_numpy(rng.integers(len(self.data.train), size=self.recipe.train.prompts_per_step))
        metrics = self._update(self.data.train.select(rows), progress.step)
        progress.step += 1
        progress.updates += 1
        progress.training_seconds += (seconds := time.perf_counter() - started)
        return Stepped(metrics=metrics, timing={"timing_s/learn": seconds, "timing_s/step": seconds})

    def _update(self, pairs: PicturePairs, step: int) -> dict[str, float | None]:
        """One optimiser step on the mean loss, taken a few pairs at a time."""
        trainable, size, sums = self.trainable, self.recipe.train.micro_batch, np.zeros(3)
        trainable.optimizer.zero_grad(set_to_none=True)
        for rows in torch.arange(len(pairs)).split(size):
            some = pairs.select(rows)
            better, worse = self._scores(some)
            loss = losses(self.fit.loss, better, worse, some.tie, some.margin).sum() / len(pairs)
            loss.backward()
            ahead = ((better > worse) & ~some.tie).sum().item()
            sums += [loss.item(), ahead, (~some.tie).sum().item()]
        norm = trainable.clipped_norm()
        if not (math.isfinite(sums[0]) and math.isfinite(norm)):
            raise RunError(
                f"step {step}: the loss is {sums[0]} and the gradient norm {norm}; the optimiser step was not taken and the last "
                "checkpoint is sound. Lower train.lr, then go on with --resume"
            )
        trainable.move()
        accuracy = sums[1] / sums[2] if sums[2] else None
        return {"loss": sums[0], "grad_norm": norm, "accuracy": accuracy, "lr": self.recipe.train.lr}

    def _scores(self, pairs: PicturePairs) -> tuple[torch.Tensor, torch.Tensor]:
        captions = [prompt.text for prompt in pairs.prompts]
        return self.network(captions, pairs.better), self.network(captions, pairs.worse)

    def between(self, folder: RunFolder, display: Display, progress: Progress, metrics: Metrics) -> None:
        if progress.step % self.recipe.evaluate.every == 0:
            self._measure(folder, display, progress.step, "step")

    def finish(self, folder: RunFolder, display: Display, progress: Progress) -> Callable[[str], Mapping[str, Any]]:
        self._measure(folder, display, progress.step, "after")
        return partial(self._keep, folder, progress)

    def again(self, folder: RunFolder) -> str:
        return f"go on with `plaudit fit {folder.root / 'recipe.yaml'} --resume`"

    # --- measuring ---------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def order(self) -> np.ndarray:
        """1 for each held-out pair whose better one scores higher, 0 where not, 1/2 where the scores are equal; without ties."""
        found = []
        for rows in torch.arange(len(self.data.heldout)).split(256):
            better, worse = self._scores(self.data.heldout.select(rows))
            found.append((better > worse).double() + 0.5 * (better == worse).double())
        return torch.cat(found)[~self.data.heldout.tie].numpy()

    def _measure(self, folder: RunFolder, display: Display, step: int, label: str) -> None:
        order = self.measured[label] = self.order()
        interval = mean_interval(order)
        pairs = [
            prompt for prompt, tie in zip(self.data.heldout.prompts, self.data.heldout.tie, strict=True) if not tie
        ]
        items = f"evaluations/{label}_{step:06d}_{HELDOUT}.json"
        ids = [f"{prompt.id}/{i}" for i, prompt in enumerate(pairs)]
        kinds = [str(prompt.facts.get("category", "all")) for prompt in pairs]
        folder.write_json(items, {"id": ids, "category": kinds, "score": order.tolist(), "rewards": {}})
        entry = {"step": step, "split": HELDOUT, "label": label, "reward": PAIR_ORDER, "items": items, "rewards": {}}
        entry |= {"mean": interval.mean, "low": interval.low, "high": interval.high}
        entry |= {
            "count": interval.count,
            "missing": interval.missing,
            "by_category": _by_kind(kinds, order),
            "verdict": True,
        }
        folder.append("evaluations.jsonl", entry)
        display.evaluation(step, f"{HELDOUT} {label}", interval.mean, interval.low, interval.high)

    def _keep(self, folder: RunFolder, progress: Progress, stopped: str) -> Mapping[str, Any]:
        """The fitted reward in `final`, by whose folder it is one, and the summary."""
        final = folder.root / "final"
        with storage.explain_write_errors(final):
            final.mkdir(exist_ok=True)
            save_file(self.network.state_dict(), final / WEIGHTS)
        about = {"fit": self.fit.model_dump(mode="json"), "plaudit": __version__}
        storage.write_text(final / ABOUT, json.dumps(about, indent=1))
        before, after = (mean_interval(self.measured[label]) for label in ("before", "after"))
        ids = tuple(map(str, range(len(self.measured["after"]))))
        first, last = (Items(ids=ids, scores=tuple(self.measured[label].tolist())) for label in ("before", "after"))
        gain = paired_gain(first, last)
        bounds = {"before": before, "after": after, "gain": gain}
        return {
            "split": HELDOUT,
            "reward": PAIR_ORDER,
            "accuracy": True,
            **{f"{name}{end}": getattr(one, key) for name, one in bounds.items() for end, key in ENDS.items()},
            "minutes": progress.total_seconds / 60,
            "training_minutes": progress.training_seconds / 60,
            "steps": progress.step,
            "network_calls": 0,
            "reward_calls": 0,
            "stopped": stopped,
            "plaudit": __version__,
            "torch": torch.__version__,
            "threads": torch.get_num_threads(),
            "seed": self.recipe.run.seed,
        }


ENDS = {"": "mean", "_low": "low", "_high": "high"}


def _by_kind(kinds: list[str], order: np.ndarray) -> dict[str, dict[str, float]]:
    rows = {
        kind: [value for each, value in zip(kinds, order, strict=True) if each == kind] for kind in dict.fromkeys(kinds)
    }
    return {kind: {"mean": float(np.mean(values)), "count": len(values)} for kind, values in rows.items()}

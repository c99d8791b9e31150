"""A reward that `plaudit fit` has made, and the networks that it is made of.

Shape legend: B pairs of caption and picture, F features.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from plaudit import storage
from plaudit.errors import DataError, RecipeError
from plaudit.lab.networks import PairTrunk
from plaudit.lab.scenes.grammar import tokenise
from plaudit.recipe.fit import Fit, Head
from plaudit.rewards.base import Card
from plaudit.rewards.encoders.base import Encoder, embed_once
from plaudit.rewards.encoders.load import load_encoder

WEIGHTS, ABOUT = "reward.safetensors", "reward.json"  # in a run's `final` folder


def head_of(features: int, config: Head) -> nn.Sequential:
    """Linear layers with SiLU between them; one layer is a linear head."""
    widths = [features, *[config.width] * (config.layers - 1), 1]
    layers: list[nn.Module] = []
    for number, (enter, leave) in enumerate(itertools.pairwise(widths)):
        layers += [nn.SiLU()] * (number > 0) + [nn.Linear(enter, leave)]
    return nn.Sequential(*layers)


class OfEncoder:
    """Features `[B, 3 D]` of a frozen encoder: picture, caption, and their product."""

    def __init__(self, encoder: Encoder) -> None:
        self.encoder = encoder

    @property
    def width(self) -> int:
        return 3 * self.encoder.embed_texts(["a"]).shape[-1]

    def __call__(self, captions: Sequence[str], pictures: Tensor) -> Tensor:
        seen, said = self.encoder.embed_images(pictures), embed_once(self.encoder, captions)
        return torch.cat([seen, said, seen * said], -1)


class RewardNetwork(nn.Module):
    """Scores `[B]` of captions and pictures: a trunk, and a head on its features."""

    def __init__(self, fit: Fit) -> None:
        super().__init__()
        self.trunk: Any = PairTrunk() if fit.trunk == "convolution" else OfEncoder(load_encoder(fit.trunk))
        self.head = head_of(self.trunk.width, fit.head)

    def forward(self, captions: Sequence[str], pictures: Tensor) -> Tensor:
        if isinstance(self.trunk, PairTrunk):
            features = self.trunk(pictures, torch.from_numpy(tokenise(captions)))
        else:
            features = self.trunk(captions, pictures)
        scores: Tensor = self.head(features)[:, 0]
        return scores


class Fitted:
    """What a run of `plaudit fit` has learned, by the path of its folder."""

    card = Card(
        summary="what `plaudit fit` has made of preferences", differentiable=True, cost_ms=0.2, systems=("S116",)
    )

    def __init__(self, path: str) -> None:
        folder = next((f for f in (Path(path) / "final", Path(path)) if (f / ABOUT).is_file()), None)
        if folder is None:
            raise RecipeError(
                f"fitted: {path} holds no fitted reward ({ABOUT}); give the folder of a run of `plaudit fit`"
            )
        about = _read(folder / ABOUT)
        self.network = RewardNetwork(Fit.model_validate(about["fit"])).eval().requires_grad_(False)
        storage.load_weights(self.network, folder / WEIGHTS, "fitted")

    def __call__(self, prompts: Sequence[str], outputs: Tensor) -> Tensor:
        scores: Tensor = self.network(prompts, outputs)
        return scores.double()


def _read(path: Path) -> Mapping[str, Any]:
    try:
        about: Mapping[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        Fit.model_validate(about["fit"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"fitted: {path} is not what this version of `plaudit fit` writes ({error}); fit it again"
        ) from error
    return about

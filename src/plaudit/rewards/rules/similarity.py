"""Rewards that compare a picture with the reference picture of its prompt (`reference`, in the prompt's `inputs`).

Shape legend: B pictures, C = 3 channels, H rows, W columns; N, M patches with D features.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from pydantic import Field
from torch import Tensor

from plaudit.errors import RewardError
from plaudit.recipe.base import Positive
from plaudit.rewards.base import Card, Score, Status, card, missing
from plaudit.rewards.rules.pixels import SMALLEST, contrast, grey_entropy, saturation, sharpness
from plaudit.rewards.transport import emd

References = Sequence[Tensor | None]
Decibels = Annotated[float, Field(gt=0, le=60)]
Compare = Callable[[Tensor, Tensor], Tensor]

SSIM_WINDOW, SSIM_SIGMA = 11, 1.5
SSIM_C1, SSIM_C2 = 0.01**2, 0.03**2  # (K L)^2 with L = 1
SMALLEST_RANGE = 1e-6  # of a metric within a group; less is rounding


def compared(outputs: Tensor, reference: References, compare: Compare) -> Tensor | list[float | Score]:
    """`compare` of every picture with its reference; a missing score where there is none of the same size."""
    refused = [_refusal(output, wanted) for output, wanted in zip(outputs, reference, strict=True)]
    if not any(refused):
        return compare(outputs, _stacked(reference, outputs))
    rows = [i for i, score in enumerate(refused) if score is None]
    values = compare(outputs[rows], _stacked([reference[i] for i in rows], outputs)).tolist() if rows else []
    found = dict(zip(rows, values, strict=True))
    return [score or found[i] for i, score in enumerate(refused)]


def _refusal(output: Tensor, reference: Any) -> Score | None:
    if reference is None:
        return missing(Status.NOT_APPLICABLE, "the prompt has no reference picture")
    if not isinstance(reference, Tensor):
        raise RewardError(
            f"`reference` is a {type(reference).__name__}; it must be a picture: a Tensor [3, H, W] in 0..1"
        )
    if reference.shape != output.shape:
        return missing(Status.ERRORED, f"the reference is {list(reference.shape)}, the picture {list(output.shape)}")
    if not output.isfinite().all():
        return missing(Status.ERRORED, "the picture has pixels that are not finite")
    return None


def _stacked(reference: References, like: Tensor) -> Tensor:
    return torch.stack([wanted for wanted in reference if wanted is not None]).to(like)


# --- pixel by pixel --------------------------------------------------------------------------------------------------


def mean_squared_error(outputs_BCHW: Tensor, reference_BCHW: Tensor) -> Tensor:
    return (outputs_BCHW - reference_BCHW).square().mean(dim=(1, 2, 3))


def negative_root(outputs_BCHW: Tensor, reference_BCHW: Tensor) -> Tensor:
    """Exactly 0, with gradient 0, where the pictures are equal: the root has no derivative there."""
    error = mean_squared_error(outputs_BCHW, reference_BCHW)
    return torch.where(error > 0, -error.clamp_min(torch.finfo(error.dtype).tiny).sqrt(), 0.0)


@card(low=-1, high=0, differentiable=True, cost_ms=0.025)
def negative_l2(prompts: Sequence[str], outputs: Tensor, reference: References) -> Tensor | list[float | Score]:
    """Minus the root mean square difference to `reference`: 0 when equal, -1 for black against white."""
    return compared(outputs, reference, negative_root)


def psnr_db(outputs_BCHW: Tensor, reference_BCHW: Tensor, ceiling_db: float) -> Tensor:
    """10 log10(1 / MSE) `[B]` for pictures in 0..1, at most `ceiling_db`."""
    error = mean_squared_error(outputs_BCHW, reference_BCHW)
    return -10 * error.clamp_min(10 ** (-ceiling_db / 10)).log10()


class Psnr:
    """Peak signal-to-noise ratio to `reference` in dB, at most `ceiling_db`: equal pictures would have infinitely many.

    Rounding to bytes alone gives 58.9 dB, so that more than 60 says nothing.
    """

    card = Card(
        summary="peak signal-to-noise ratio to the reference, in dB", low=0, high=60, differentiable=True, cost_ms=0.025
    )

    def __init__(self, ceiling_db: Decibels = 60) -> None:
        self.ceiling_db = ceiling_db

    def __call__(self, prompts: Sequence[str], outputs: Tensor, reference: References) -> Tensor | list[float | Score]:
        return compared(outputs, reference, lambda x, y: psnr_db(x, y, self.ceiling_db))


def _gaussian_band(size: int, like: Tensor) -> Tensor:
    """`[size - 10, size]`: row i averages the window that starts at i. As a product far faster than as a convolution."""
    offset = torch.arange(SSIM_WINDOW, dtype=torch.float64) - SSIM_WINDOW // 2
    profile = torch.exp(-offset.square() / (2 * SSIM_SIGMA**2))
    profile = (profile / profile.sum()).to(like)
    num_windows = size - SSIM_WINDOW + 1
    return torch.stack([F.pad(profile, (i, num_windows - 1 - i)) for i in range(num_windows)])


def ssim_map(outputs_BCHW: Tensor, reference_BCHW: Tensor) -> Tensor:
    """Structural similarity `[B, C, H - 10, W - 10]` of every 11 x 11 Gaussian window (Wang et al. 2004, eq. 13).

    In float64: where a picture is flat, its variance in float32 would be rounding as large as the constant beside it.
    """
    x, y = outputs_BCHW.double(), reference_BCHW.double()
    rows, columns = (_gaussian_band(size, x) for size in x.shape[2:])

    def local_mean(values: Tensor) -> Tensor:
        return rows @ values @ columns.T

    mean_x, mean_y = local_mean(x), local_mean(y)
    var_x, var_y = local_mean(x * x) - mean_x.square(), local_mean(y * y) - mean_y.square()
    covariance = local_mean(x * y) - mean_x * mean_y
    luminance = (2 * mean_x * mean_y + SSIM_C1) / (mean_x.square() + mean_y.square() + SSIM_C1)
    return luminance * (2 * covariance + SSIM_C2) / (var_x + var_y + SSIM_C2)


@card(low=-1, high=1, differentiable=True, cost_ms=0.15)
def ssim(prompts: Sequence[str], outputs: Tensor, reference: References) -> Tensor | list[float | Score]:
    """Structural similarity to `reference`, mean over windows and over red, green and blue (the paper: grey)."""
    if min(outputs.shape[2:]) < SSIM_WINDOW:
        raise RewardError(
            f"ssim: pictures are {tuple(outputs.shape[2:])}; they need at least {SSIM_WINDOW} pixels a side"
        )
    return compared(outputs, reference, lambda x, y: ssim_map(x, y).mean(dim=(1, 2, 3)))


# --- patch by patch --------------------------------------------------------------------------------------------------


def cosine_distances(x_ND: Tensor, y_MD: Tensor) -> Tensor:
    """1 - cosine `[N, M]`. A zero vector equals another zero vector and is at a right angle to everything else."""
    length_x, length_y = x_ND.norm(dim=1), y_MD.norm(dim=1)
    cosine = F.normalize(x_ND, dim=1, eps=SMALLEST) @ F.normalize(y_MD, dim=1, eps=SMALLEST).T
    both_zero = (length_x <= SMALLEST)[:, None] & (length_y <= SMALLEST)[None, :]
    return 1 - torch.where(both_zero, 1.0, cosine.clamp(-1, 1))


def transport_similarity(x_ND: Tensor, y_MD: Tensor) -> float:
    """1 - sum(F D) / sum(F) for the cheapest plan F between patches of equal mass, D = 1 - cosine (S063)."""
    return 1 - emd(cosine_distances(x_ND.double(), y_MD.double()))


class PatchTransport:
    """Optimal-transport similarity of the patches of picture and `reference`, wherever in the picture they are.

    Both are averaged down (or repeated up) to `grid` x `grid` patches of `patch` x `patch` pixels, so that their sizes may
    differ. A patch's features are its pixels, scaled to -1..1 (in 0..1 the cosine could not tell black from white); the
    paper's are those of an inverse-graphics encoder.
    """

    card = Card(
        summary="optimal-transport similarity of patches", low=-1, high=1, systems=("S063",), cost_ms=0.3
    )  # fmt: skip

    def __init__(self, grid: Annotated[int, Field(ge=1, le=32)] = 8, patch: Positive = 4) -> None:
        self.grid, self.patch = grid, patch

    def features(self, picture_CHW: Tensor) -> Tensor:
        """`[grid^2, 3 patch^2]`."""
        small = F.adaptive_avg_pool2d(picture_CHW[None].double(), self.grid * self.patch)
        return F.unfold(2 * small - 1, self.patch, stride=self.patch)[0].T

    def __call__(self, prompts: Sequence[str], outputs: Tensor, reference: References) -> list[float | Score]:
        return [
            missing(Status.NOT_APPLICABLE, "the prompt has no reference picture")
            if wanted is None
            else transport_similarity(self.features(output), self.features(wanted))
            for output, wanted in zip(outputs, reference, strict=True)
        ]


# --- with and without a reference ------------------------------------------------------------------------------------


def within_group_range(values_B: Tensor, group: Sequence[int]) -> Tensor:
    """Values scaled to 0..1 inside each group; 0.5 where a group's values do not differ."""
    _, member_B = torch.unique(torch.as_tensor(group), return_inverse=True)
    num_groups = int(member_B.max()) + 1 if len(member_B) else 0
    extreme = torch.zeros(num_groups, dtype=values_B.dtype)
    low = extreme.scatter_reduce(0, member_B, values_B, "amin", include_self=False)[member_B]
    high = extreme.scatter_reduce(0, member_B, values_B, "amax", include_self=False)[member_B]
    differ = high - low > SMALLEST_RANGE * torch.maximum(high.abs(), low.abs()).clamp_min(1)
    return torch.where(differ, (values_B - low) / torch.where(differ, high - low, 1.0), 0.5)


def frnr_fusion(full: Mapping[str, Tensor], none: Mapping[str, Tensor], group: Sequence[int]) -> Tensor:
    """DP2O-SR's reward `[B]`: half the mean of the full-reference metrics, half that of the no-reference ones.

    All metrics `[B]` must be better when higher; each is first scaled to 0..1 within its group.
    """
    if not full or not none:
        raise RewardError("frnr_fusion needs at least one metric with and one without a reference")
    halves = [
        torch.stack([within_group_range(values.double(), group) for values in metrics.values()]).mean(dim=0)
        for metrics in (full, none)
    ]
    return (halves[0] + halves[1]) / 2


WithReference = Literal["psnr", "ssim"]
WithoutReference = Literal["sharpness", "contrast", "saturation", "grey_entropy"]
FULL_REFERENCE: Mapping[str, Compare] = {
    "psnr": lambda x, y: psnr_db(x, y, 60),
    "ssim": lambda x, y: ssim_map(x, y).mean(dim=(1, 2, 3)),
}
NO_REFERENCE: Mapping[str, Callable[..., Tensor]] = {
    "sharpness": sharpness,
    "contrast": contrast,
    "saturation": saturation,
    "grey_entropy": grey_entropy,
}


class RestorationQuality:
    """Fidelity to `reference` and looks without it, ranked within the group and weighted equally (S005).

    The paper's metrics are learned ones (LPIPS, MUSIQ, ...) and leave out PSNR and SSIM; these are arithmetic.
    """

    card = Card(
        summary="full- and no-reference metrics, ranged within the group", low=0, high=1, batch_invariant=False,
        systems=("S005",), cost_ms=0.4,
    )  # fmt: skip

    def __init__(
        self,
        full: Annotated[Sequence[WithReference], Field(min_length=1)] = ("psnr", "ssim"),
        none: Annotated[Sequence[WithoutReference], Field(min_length=1)] = ("sharpness", "contrast"),
    ) -> None:
        self.full: Sequence[str] = full
        self.none: Sequence[str] = none

    def __call__(
        self, prompts: Sequence[str], outputs: Sequence[Tensor] | Tensor, reference: References, group: Sequence[int]
    ) -> list[Score]:
        scores = [_refusal(output, wanted) for output, wanted in zip(outputs, reference, strict=True)]
        rows = [i for i, score in enumerate(scores) if score is None]
        if not rows:
            return [score for score in scores if score is not None]
        metrics = [self._metrics(outputs[i][None], _stacked([reference[i]], outputs[i])) for i in rows]
        columns = {name: torch.tensor([row[name] for row in metrics], dtype=torch.float64) for name in metrics[0]}
        full, none = ({name: columns[name] for name in names} for names in (self.full, self.none))
        fused = frnr_fusion(full, none, [group[i] for i in rows]).tolist()
        for i, value, components in zip(rows, fused, metrics, strict=True):
            scores[i] = Score(value=value, components=components)
        return [score for score in scores if score is not None]

    def _metrics(self, output_1CHW: Tensor, reference_1CHW: Tensor) -> dict[str, float]:
        full = {name: FULL_REFERENCE[name](output_1CHW, reference_1CHW).item() for name in self.full}
        return full | {name: NO_REFERENCE[name]([], output_1CHW).item() for name in self.none}

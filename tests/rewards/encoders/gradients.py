"""Whether a score's gradient on pictures is what finite differences say."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor


def check_picture_gradient(score: Callable[[Tensor], Tensor], images: Tensor, step: float = 2e-3) -> None:
    """Along the gradient itself, where a wrong sign or scale shows, and along a random direction."""
    pictures = images.clone().requires_grad_(True)
    score(pictures).sum().backward()
    gradient = pictures.grad
    assert gradient is not None and gradient.norm() > 1e-4, "no gradient reaches the pictures"
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(0))
    for direction in (gradient, noise + gradient / gradient.norm() * noise.norm() / 4):
        unit = direction / direction.norm()
        with torch.no_grad():
            slope = (score(images + step * unit).sum() - score(images - step * unit).sum()).item() / (2 * step)
        assert slope == pytest.approx((gradient * unit).sum().item(), rel=0.05, abs=2e-3)

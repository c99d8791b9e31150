"""Transition kernels: one function per kernel, used to draw and to replay.

A step goes from time t to t' < t, dt = t - t' > 0. With x_0 = x - t v, e = x + (1 - t) v and the score -(x + (1 - t) v) / t:

    ode           mean x - v dt, no noise
    flow_sde      s = a sqrt(t / (1 - t));  mean x - v dt + s^2/2 score dt, std s sqrt(dt)         (Flow-GRPO)
    constant_eta  s = a;                    the same mean and std                                (DanceGRPO)
    cps           std t' sin(a pi / 2);     mean (1 - t') x_0 + sqrt(t'^2 - std^2) e                    (coefficient-preserving)
    ddim_eta      std of DDIM with eta = a, in flow coordinates; mean as in cps                        (DDPO)

Conventions. Level a = 0 is the Euler step of the ODE for every kernel. The step to t' = 0 is always deterministic, so it
has no density and is never trained. At t = 1, where t / (1 - t) is singular, flow_sde is Flow-GRPO's published step, which puts
the second time of its schedule, t', in the denominator only: s = a sqrt(1 / (1 - t')), so that the std is a itself.

A kernel of one's own is a function of the same five arguments at a dotted path, held to the same conventions.

Shape legend: B batch, * latent dimensions.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from plaudit.dotted import import_dotted
from plaudit.errors import RecipeError
from plaudit.models.flow import per_sample
from plaudit.recipe.objectives import DENSITIES, KLS

LOG_SQRT_2PI = 0.5 * math.log(2 * math.pi)


@dataclass(frozen=True, kw_only=True)
class Transition:
    """A Gaussian step: `mean [B, *]` and one `std [B]` per sample, 0 where the step is deterministic."""

    mean: Tensor
    std: Tensor


Kernel = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Transition]


def _langevin(x: Tensor, v: Tensor, t: Tensor, t_next: Tensor, diffusion: Tensor) -> Transition:
    dt = t - t_next
    diffusion = torch.where(t_next > 0, diffusion, torch.zeros_like(diffusion))
    score_t = -(x + per_sample(1 - t, x) * v)  # score times t
    drift = per_sample(0.5 * diffusion.square() * dt / t, x) * score_t
    return Transition(mean=x - per_sample(dt, x) * v + drift, std=diffusion * dt.sqrt())


def flow_sde(x: Tensor, v: Tensor, t: Tensor, t_next: Tensor, level: Tensor) -> Transition:
    return _langevin(x, v, t, t_next, level * torch.sqrt(t / (1 - torch.where(t < 1, t, t_next))))


def constant_eta(x: Tensor, v: Tensor, t: Tensor, t_next: Tensor, level: Tensor) -> Transition:
    return _langevin(x, v, t, t_next, level.expand_as(t))


def _preserving(x: Tensor, v: Tensor, t: Tensor, t_next: Tensor, std: Tensor) -> Transition:
    clean = x - per_sample(t, x) * v
    noise = x + per_sample(1 - t, x) * v
    kept = (t_next.square() - std.square()).clamp(min=0).sqrt()
    return Transition(mean=per_sample(1 - t_next, x) * clean + per_sample(kept, x) * noise, std=std)


def cps(x: Tensor, v: Tensor, t: Tensor, t_next: Tensor, level: Tensor) -> Transition:
    return _preserving(x, v, t, t_next, t_next * torch.sin(level * math.pi / 2))


def ddim_eta(x: Tensor, v: Tensor, t: Tensor, t_next: Tensor, level: Tensor) -> Transition:
    """DDIM's sigma_t (its equation 16) in flow coordinates: with rho the quotient of the two noise-to-signal ratios
    t / (1 - t), the variance is eta^2 t'^2 (1 - rho^2). The form with alpha-bar loses four digits near t' = 0."""
    rho = t_next * (1 - t) / (t * (1 - t_next))
    return _preserving(x, v, t, t_next, level * t_next * (1 - rho.square()).clamp(min=0).sqrt())


def ode(x: Tensor, v: Tensor, t: Tensor, t_next: Tensor, level: Tensor) -> Transition:
    return Transition(mean=x - per_sample(t - t_next, x) * v, std=torch.zeros_like(t))


KERNELS: dict[str, Kernel] = {
    "ode": ode,
    "flow_sde": flow_sde,
    "constant_eta": constant_eta,
    "cps": cps,
    "ddim_eta": ddim_eta,
}


def transition(kernel: str, x: Tensor, v: Tensor, t: Tensor, t_next: Tensor, level: Tensor) -> Transition:
    """One step of a named kernel in float32; `t`, `t_next` and `level` are `[B]`."""
    assert x.shape == v.shape and t.shape == t_next.shape == level.shape == x.shape[:1]
    return find_kernel(kernel)(x.float(), v.float(), t.float(), t_next.float(), level.float())


def find_kernel(name: str) -> Kernel:
    """One of ours, or the user's own, whose steps are held to the conventions above."""
    return KERNELS[name] if name in KERNELS else _own_kernel(name)


@functools.cache
def _own_kernel(name: str) -> Kernel:
    own = import_dotted(name, "sampler.kernel", KERNELS)

    def checked(x: Tensor, v: Tensor, t: Tensor, t_next: Tensor, level: Tensor) -> Transition:
        step = own(x, v, t, t_next, level)
        if not isinstance(step, Transition) or step.mean.shape != x.shape or step.std.shape != t.shape:
            raise RecipeError(
                f"sampler.kernel: {name} must return a Transition with a mean of x's shape and a std for each sample"
            )
        if not (step.std >= 0).all() or (step.std[(t_next == 0) | (level == 0)] != 0).any():
            raise RecipeError(
                f"sampler.kernel: {name} must have a std of 0 at level 0 and in the step to t = 0, and nowhere less"
            )
        return step

    return checked


def _dims(x: Tensor) -> tuple[int, ...]:
    return tuple(range(1, x.ndim))


def _formula(published: Mapping[str, Mapping[str, str]], name: str, kernel: str) -> str:
    """What a name stands for: itself, or what was published under it for this kernel."""
    if name in published and kernel not in published[name]:
        raise ValueError(f"{name} was not published for kernel {kernel!r}; allowed: {', '.join(published[name])}")
    return published[name][kernel] if name in published else name


def log_density(x_next: Tensor, step: Transition, density: str = "exact", kernel: str = "") -> Tensor:
    """Log-density `[B]` of drawn next states, in float64; 0 where the step is deterministic.

    `exact` is the Gaussian's, summed over dimensions; `mean` divides it by their number. The published `flow_grpo` and `cps`
    are, by `kernel`, that mean or the mean squared distance without variance or constant (`DENSITIES`). The scalings are not
    interchangeable: a clip range belongs to one of them.
    """
    random = step.std > 0
    std = per_sample(torch.where(random, step.std, torch.ones_like(step.std)), x_next).double()
    squared = (x_next.double() - step.mean.double()).square()
    gaussian = -squared / (2 * std.square()) - std.log() - LOG_SQRT_2PI
    match _formula(DENSITIES, density, kernel):
        case "exact":
            value = gaussian.sum(_dims(x_next))
        case "mean":
            value = gaussian.mean(_dims(x_next))
        case "distance":
            value = -squared.mean(_dims(x_next))
        case _:
            raise ValueError(f"density {density!r}; allowed: exact, mean, flow_grpo, cps")
    return torch.where(random, value, torch.zeros_like(value))


def kl_divergence(
    step: Transition, reference: Transition, t: Tensor, t_next: Tensor, scaling: str = "exact", kernel: str = ""
) -> Tensor:
    """KL `[B]` of two transitions that share their std; 0 where the step is deterministic.

    `exact` sums over dimensions; `mean` averages. The published `flow_grpo` and `cps` are, by `kernel` (`KLS`), that mean, the
    mean with a variance that lacks its dt (0.04 to 0.18 of the mean at 10 steps), or the mean squared distance alone.
    """
    random = step.std > 0
    variance = torch.where(random, step.std, torch.ones_like(step.std)).square()
    squared = (step.mean - reference.mean).square()
    match _formula(KLS, scaling, kernel):
        case "exact":
            value = squared.sum(_dims(squared)) / (2 * variance)
        case "mean":
            value = squared.mean(_dims(squared)) / (2 * variance)
        case "without_dt":
            value = squared.mean(_dims(squared)) / (2 * variance / (t - t_next))
        case "distance":
            value = squared.mean(_dims(squared))
        case _:
            raise ValueError(f"KL scaling {scaling!r}; allowed: exact, mean, flow_grpo, cps")
    return torch.where(random, value, torch.zeros_like(value))

"""The search methods by name. Another one is a dotted path `package.module:Class` and needs no entry."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Entry:
    """Where a method lives, which model families it works on, what it does, and which published systems use it."""

    path: str
    families: tuple[str, ...]
    summary: str
    systems: tuple[str, ...] = ()


METHODS: dict[str, Entry] = {
    "none": Entry(
        path="plaudit.search.best_of_n:Plain",
        families=("flow", "tokens"),
        summary="one plain sample of every prompt",
    ),
    "best_of_n": Entry(
        path="plaudit.search.best_of_n:BestOfN",
        families=("flow", "tokens"),
        summary="the best of as many plain samples as the budget pays for",
        systems=("S079",),
    ),
    "prune": Entry(
        path="plaudit.search.flow.prune:Prune",
        families=("flow",),
        summary="many seeds, of which those with the best previews are drawn to the end",
        systems=("S090",),
    ),
    "renoise": Entry(
        path="plaudit.search.flow.renoise:Renoise",
        families=("flow",),
        summary="candidates whose best are copied, re-noised and drawn again on the way",
        systems=("S016",),
    ),
    "beam": Entry(
        path="plaudit.search.flow.beam:Beam",
        families=("flow",),
        summary="beam search over the steps' noise, looking a few deterministic steps ahead",
        systems=("S043",),
    ),
    "particles": Entry(
        path="plaudit.search.flow.particles:Particles",
        families=("flow",),
        summary="particles that are weighed and resampled on the way towards p(x) exp(alpha r(x))",
        systems=("S056",),
    ),
    "guidance": Entry(
        path="plaudit.search.flow.guidance:Guidance",
        families=("flow",),
        summary="samples that follow the gradient of a differentiable reward",
        systems=("S052", "S056"),
    ),
    "smc": Entry(
        path="plaudit.search.text.smc:TokenSmc",
        families=("tokens",),
        summary="particles that draw texts from model probability times exp(reward), with Metropolis-Hastings moves",
        systems=("S094",),
    ),
    "streaming": Entry(
        path="plaudit.search.text.streaming:Streaming",
        families=("tokens",),
        summary="best-of-N that judges unfinished texts and drops the worst on the way",
        systems=("S079",),
    ),
    "noise": Entry(
        path="plaudit.search.flow.optimise_noise:Noise",
        families=("flow",),
        summary="gradient ascent of the reward on the starting noise, for generators of one step or a few",
        systems=("S088",),
    ),
}

"""The lab's worlds, a row each: small places whose truth can be computed. What a row names lies in the world's own folder."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, kw_only=True)
class World:
    """Prompts with facts, networks that answer them, and what judges the answers.

    `networks` are the generators that ship, by the name after `lab/`, each the class at a dotted path; `prompts` makes a source
    from their config; `recipe` trains in this world; `truth` is the exact reward, `judges` a cheap one with a planted flaw and a
    better one, and `budgets` what searches of it are compared at; `own_keys` says that its prompts have a config of their own,
    and `build` pretrains a network by its name.
    """

    name: str
    family: Literal["flow", "tokens"]
    networks: Mapping[str, str]
    prompts: str
    recipe: str
    truth: str
    judges: tuple[str, ...]
    budgets: tuple[str, ...]
    own_keys: bool = False
    build: str = "plaudit.builds.generators:build"


WORLDS = {
    world.name: world
    for world in (
        World(
            name="scenes",
            family="flow",
            networks={
                "slots": "plaudit.lab.networks:SlotNetwork",
                "slots-turbo": "plaudit.lab.networks:SlotNetwork",
                "pixels": "plaudit.lab.networks:PixelNetwork",
            },
            prompts="plaudit.lab.scenes.world:ScenesSource",
            recipe="default",
            truth="scene_exact",
            judges=("scene_proxy", "caption_likelihood"),
            budgets=("40nfe", "80nfe", "160nfe"),
            own_keys=True,
        ),
        World(
            name="sums",
            family="tokens",
            networks={"sums": "plaudit.lab.language:LanguageNetwork"},
            build="plaudit.builds.language:build_language",
            prompts="plaudit.lab.sums.world:SumsSource",
            recipe="sums-grpo",
            truth="sum_correct",
            judges=("sum_proxy", "sum_steps"),
            budgets=("200nfe", "400nfe", "800nfe"),
            own_keys=True,
        ),
        World(
            name="edits",
            family="flow",
            networks={"edits": "plaudit.lab.edits.network:EditNetwork"},
            prompts="plaudit.lab.edits.world:EditsSource",
            recipe="edits-grpo",
            truth="edit_exact",
            judges=("edit_proxy", "edit_match"),
            budgets=("40nfe", "80nfe", "160nfe"),
        ),
    )
}
NETWORKS = {network: world for world in WORLDS.values() for network in world.networks}


def world_of(network: str) -> World:
    return NETWORKS[network]

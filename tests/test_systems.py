"""The table of published systems: complete, unique, and every recipe that it names exists."""

from __future__ import annotations

import dataclasses

import pytest

from plaudit.errors import DataError
from plaudit.recipe.load import load, shipped
from plaudit.systems import STATUSES, load_systems

SYSTEMS = load_systems()


def test_there_are_129_systems_in_order():
    assert [system.id for system in SYSTEMS] == [f"S{number:03d}" for number in range(1, 130)]


def test_names_are_unique_and_every_system_says_what_must_exist():
    names = [system.name for system in SYSTEMS]
    assert len(set(names)) == len(names)
    assert all(len(system.what) > 10 for system in SYSTEMS)
    assert {system.home for system in SYSTEMS} == {
        *("flow objectives", "token objectives", "reward models", "judges", "search", "audit", "exploration")
    }


def test_statuses_and_recipes_agree():
    for system in SYSTEMS:
        assert system.status in STATUSES
        assert system.recipe is None or system.recipe in shipped(), system
        assert system.status == "planned" or system.recipe is not None, f"{system.id} runs without a recipe"


def test_recipes_name_the_systems_that_name_them():
    named = {system.recipe: system.id for system in SYSTEMS if system.recipe}
    for name in shipped():
        assert load(name).system in (None, named.get(name)), name


def test_systems_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        SYSTEMS[0].status = "shown"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("{id: S001, name: a, home: b, what: c, state: runs}", "system S001: unknown key 'state'; allowed: id, name, "),
        ("{id: S001, name: 3, home: b, what: c}", "system S001: `name` is 3; it must be text"),
        (
            "{id: S001, name: a, home: b, what: c, status: done}",
            "system S001: `status` is 'done'; allowed: planned, runs, shown, negative",
        ),
    ],
)
def test_mistakes_in_the_table_are_named(tmp_path, entry, message):
    path = tmp_path / "systems.yaml"
    path.write_text(f"- {entry}\n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        load_systems(path)
    assert message in str(caught.value)

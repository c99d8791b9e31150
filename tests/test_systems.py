"""The table of published systems: complete, unique, and whatever it names as evidence exists."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.docs.pages import ROOT, page

from plaudit.audit.record import Standing, standings_of
from plaudit.audit.results import Title
from plaudit.audit.results import page as results_page
from plaudit.errors import DataError
from plaudit.recipe.experiment import load_experiment, shipped
from plaudit.recipe.load import load
from plaudit.recipe.load import shipped as recipes
from plaudit.systems import LEVELS, Part, level_of, load_systems, weakest

SYSTEMS = load_systems()
EXPERIMENTS = {name: load_experiment(path) for name, path in shipped().items()}
PARTS = [(system.id, part) for system in SYSTEMS for part in system.what]


def test_there_are_129_systems_in_order():
    assert [system.id for system in SYSTEMS] == [f"S{number:03d}" for number in range(1, 130)]


def test_names_are_unique_and_every_system_has_a_known_home():
    names = [system.name for system in SYSTEMS]
    assert len(set(names)) == len(names)
    assert {system.home for system in SYSTEMS} == {
        *("flow objectives", "token objectives", "reward models", "judges", "search", "audit", "exploration")
    }


@pytest.mark.parametrize("part", [part for _, part in PARTS if part.by], ids=lambda part: part.part[:40])
def test_whatever_is_named_as_evidence_exists(part: Part) -> None:
    for evidence in part.by:
        if evidence.startswith("tests/"):
            path, _, test = evidence.partition("::")
            assert (ROOT / path).is_file(), evidence
            assert f"def {test}(" in (ROOT / path).read_text(encoding="utf-8") or not test, evidence
        else:
            assert evidence in EXPERIMENTS, evidence
    assert part.recipe is None or part.recipe in recipes(), part.recipe


def test_a_part_that_is_planned_names_no_recipe() -> None:
    assert not [part for _, part in PARTS if part.recipe and not part.by]


def test_experiments_and_recipes_belong_to_the_systems_that_name_them() -> None:
    for name, experiment in EXPERIMENTS.items():
        naming = [system for system, part in PARTS if name in part.by]
        assert naming == [experiment.system] if experiment.system else not naming, name
    naming_recipe = {(part.recipe, system) for system, part in PARTS if part.recipe}
    for name in recipes():
        system = load(name).system
        assert system is None or (name, system) in naming_recipe, name


def test_a_level_follows_from_what_shows_it_and_a_systems_is_its_weakest_parts() -> None:
    class Fake:
        verdict = "shown"

    standings = {
        "S001": Standing(record=Fake()),  # type: ignore[arg-type]
        "S002": Standing(record=Fake(), why="train.lr has changed"),  # type: ignore[arg-type]
        "S003": Standing(record=None),
    }
    levels = [
        level_of(Part(part="a part", by=by), standings)
        for by in ([], ["tests/x.py"], ["S003"], ["tests/x.py", "S001"], ["S001", "S002"], ["S001", "S003"])
    ]
    assert levels == ["planned", "runs", "runs", "shown", "stale", "runs"]
    assert weakest(["shown", "negative", "mixed"]) == "negative"
    assert weakest(list(LEVELS)) == "planned"


def test_the_page_of_results_is_current() -> None:
    """`plaudit systems --markdown > docs/results.md` writes it anew."""
    titles = {system.id: Title(name=system.name, home=system.home) for system in SYSTEMS}
    records = ROOT / "docs" / "results"
    assert page("docs/results.md") == results_page(titles, standings_of(EXPERIMENTS, records), EXPERIMENTS)
    assert {path.stem for path in records.glob("*.json")} <= set(EXPERIMENTS), "a record of no experiment"


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        (
            "{id: S001, name: a, home: b, what: [some part], state: runs}",
            "system S001: state: extra inputs are not permitted",
        ),
        (
            "{id: S001, name: 3, home: b, what: [some part]}",
            "system S001: name: input should be a valid string; found 3",
        ),
        ("{id: S001, name: a, home: b, what: []}", "system S001: what: list should have at least 1 item"),
        ("{id: S001, name: a, home: b, what: [{part: one, level: shown}]}", "system S001: what.0.level: extra inputs"),
    ],
)
def test_mistakes_in_the_table_are_named(tmp_path: Path, entry: str, message: str) -> None:
    path = tmp_path / "systems.yaml"
    path.write_text(f"- {entry}\n", encoding="utf-8")
    with pytest.raises(DataError) as caught:
        load_systems(path)
    assert message in str(caught.value)

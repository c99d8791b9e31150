"""Whatever stands in a recipe or in the file of a service: it is read, or refused in lines that name the place."""

from __future__ import annotations

import random
import re
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from plaudit.cli import app
from plaudit.errors import RecipeError
from plaudit.recipe.load import as_recipe, dump, load, recipe_of, shipped
from plaudit.recipe.text import DEEPEST, LARGEST, parse, render
from plaudit.serve.config import ServeFile, read_file, read_mapping

BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)
HOSTILE = {
    "aliases that are a gigabyte": (BOMB, r"line 1, column 4: recipes have no anchors, aliases or tags"),
    "a value inside itself": ("model: &m {type: custom, factory: a:b, arguments: *m}\n", "no anchors, aliases or tags"),
    "a merge of itself": ("train: &t\n  <<: *t\n", "no anchors, aliases or tags"),
    "python": ("name: !!python/object/apply:os.getcwd []\n", "no anchors, aliases or tags"),
    "int": ("run: {seed: !!int abc}\n", "no anchors, aliases or tags"),
    "bool": ("run: {seed: !!bool maybe}\n", "no anchors, aliases or tags"),
    "date": ("name: !!timestamp 2001-99-99\n", "no anchors, aliases or tags"),
    "5,000 digits": (f"run: {{seed: {'9' * 5000}}}\n", "number or an escape that is out of range"),
    "4,000 digits": (f"run: {{seed: {'9' * 4000}}}\n", "an integer of 13288 bits; the largest have 64"),
    "a long hexadecimal": (f"run: {{seed: 0x{'f' * 5000}}}\n", "an integer of 20000 bits; the largest have 64"),
    "a version": (f"%YAML {'1' * 5000}.1\n--- {{name: a}}\n", "number or an escape that is out of range"),
    "no character": ('name: "\\U00110000"\n', "number or an escape that is out of range"),
    "far from a character": ('name: "\\UFFFFFFFF"\n', "number or an escape that is out of range"),
    "an unknown escape": ('name: "\\q"\n', "line 1, column 9: found unknown escape character 'q'"),
    "half a character": ('name: "\\ud800"\n', r"the text '\\ud800' has the character \\ud800; leave it out"),
    "NUL in a path": ('run: {folder: "a\\0b"}\n', r"the text 'a\\x00b' has the character \\x00; leave it out"),
    "NUL itself": ("name: a\0b\n", "not YAML text: special characters are not allowed"),
    "deep keys": ("".join("{a: " for _ in range(1200)) + "1", f"more than {DEEPEST} keys and lists inside each other"),
    "deep lines": ("\n".join(" " * i + "a:" for i in range(300)), f"more than {DEEPEST} keys and lists inside each"),
    "deep lists": ("[" * 60_000, f"more than {DEEPEST} keys and lists inside each other"),
    "a long list": (f"a: [{'1,' * 30_000}]", "line 1, column .*: more than 5,000 keys and values; a recipe names data"),
    "25,000 keys": ("".join(f"{i:x}:\n" for i in range(10_000)), "more than 5,000 keys and values"),
    "too long": (f"name: a\n# {'x' * LARGEST}\n", "more than 64 KiB"),
    "terminal": ('"\\e[2J": 1\n', r"\\x1b\[2J"),
    "two lines in a key": ('rewards: {"a\\nb": {typ: x}}\ntrain: {steps: 1}\n', r"`rewards.a\\nb.typ`"),
}
RECIPE_ONLY = {
    "nobody's home": ("base: ~nosuchuser/a.yaml\n", "recipe '~nosuchuser/a.yaml': no path of a recipe: "),
    "a long path": (f"base: {'a' * 5000}\n", "no path of a recipe: .*File name too long"),
    "many keys": ("".join(f"k{i}: 1\n" for i in range(2_400)), "and 2380 more keys$"),
    "steps beyond counting": (
        "train: {steps: 1, prompts_per_step: 1000000007, updates_per_step: 1000000006}\n",
        "nearest that can: ",
    ),
    "large batches": (
        f"train: {{steps: 1, prompts_per_step: {2**63 - 25}, samples_per_prompt: 2, updates_per_step: {2**40 + 1}}}\n",
        "updates_per_step: .* equal updates; nearest that can: 1$",
    ),
    "a key that is no text": ("1: 2\n", "unknown key `1`"),
    "text where a list of keys is dropped": ("base: default\ndrop: lr\n", '`drop` is "lr" .* must be dotted keys'),
}


def refusal(call, *arguments) -> str:
    with pytest.raises(RecipeError) as caught:
        call(*arguments)
    message = str(caught.value)
    lines = message.split("\n")
    assert all(line.isprintable() and line for line in lines) and len(lines) <= 21 and len(message) < 10_000
    return message


@pytest.mark.parametrize("case", [*HOSTILE, *RECIPE_ONLY])
def test_hostile_recipes_are_refused_in_words(tmp_path, case):
    text, expected = {**HOSTILE, **RECIPE_ONLY}[case]
    path = tmp_path / "hostile.yaml"
    path.write_text(text, encoding="utf-8")
    assert re.search(expected, refusal(load, path))
    if case in HOSTILE:
        assert re.search(expected, refusal(read_file, path))


def test_a_long_chain_of_recipes_is_cut(tmp_path):
    for i in range(1500):
        (tmp_path / f"{i}.yaml").write_text(f"base: {i + 1}.yaml\n", encoding="utf-8")
    assert refusal(load, tmp_path / "0.yaml").startswith(
        "`base`: more than 16 recipes are based on each other, the last "
    )


@pytest.mark.parametrize("source", ["~nosuchuser", "a\0b", "a" * 5000, "\udcff", "a\n\x1b[2J"])
def test_sources_that_are_no_path(source):
    assert refusal(load, source).startswith("recipe ")


def test_files_that_cannot_be_read(tmp_path):
    circle = tmp_path / "circle.yaml"
    circle.symlink_to(circle)
    assert refusal(load, circle)
    assert "it must be a UTF-8 text file" in refusal(read_file, tmp_path)
    assert "more than 64 KiB" in refusal(read_file, Path("/dev/zero"))


@pytest.mark.parametrize(
    "tokens",
    [
        ["--" + ".".join("a" * 1200), "1"],
        ["--run.seed", "9" * 5000],
        ["--run.folder", '"a\\0"'],
        ["--name", "\udcff"],
        ["--a\x1b[2J.b", "1"],
        ["--a\x1b[2J.b"],
        ["--drop", "1"],
        ["--drop", "a" * 5000],
    ],
)
def test_overrides_that_are_hostile(tokens):
    assert refusal(load, "default", tokens)


def test_mappings_from_python_pass_the_same_boundary():
    inside: dict[str, object] = {"type": "custom", "factory": "a:b"}
    inside["arguments"] = inside
    assert "more than 64 keys and lists" in refusal(load, {"model": inside})
    assert "an integer of 16610 bits" in refusal(load, {"train": {"steps": 10**5000}})


class Mute:
    def __repr__(self) -> str:
        raise RuntimeError("no words")


class MuteFunction(Mute):
    def __call__(self) -> None: ...


class MuteText(str):
    __repr__ = __str__ = Mute.__repr__


def doubled(times: int) -> list:
    value: list = [1]
    for _ in range(times):
        value = [value, value]
    return value


NO_VALUES = {
    "a small value that is a large text": (doubled(40), "more than 5,000 keys and values"),
    "a value that has no words": (Mute(), "a value of type Mute cannot be written in a recipe; use text, numbers"),
    "a function that has no words": (MuteFunction(), "MuteFunction"),
    "a key that has no words": ({MuteText("a"): 1}, "a key is of type MuteText; keys are text"),
    "a key that is no text": ({(1, 2): 1}, "a key is of type tuple; keys are text"),
    "a set of a number of thousands of digits": ({10**5000}, "a value of type set cannot be written"),
}


@pytest.mark.parametrize("case", NO_VALUES)
@pytest.mark.parametrize("call", [load, lambda source: as_recipe(source, "align"), lambda s: read_mapping(s, "file")])
def test_values_from_python_that_no_recipe_holds(case, call):
    value, expected = NO_VALUES[case]
    for place in ({"train": {"steps": value}, "serve": {"port": value}}, {"base": value}, {"x": value}):
        message = refusal(call, {"rewards": {"a": {"type": "x:y"}}, **place})
        assert expected in message or case.startswith("a function")
    assert refusal(as_recipe, value if not isinstance(value, dict) else [value], "align")


CALIBRATED = {"type": "x:y", "calibrate": {"type": "zscore", "weight": 1}}


@pytest.mark.parametrize("entry", [{"type": "x:y", "wieght": 1}, CALIBRATED, {"weight": "x"}])
def test_many_mistakes_are_told_in_bounded_work(entry):
    """Calls, not seconds: four times the mistakes may not take much more than four times the work."""
    work = []
    for count in (120, 480):
        calls = 0

        def counted(frame, event, argument):
            nonlocal calls
            calls += event in ("call", "c_call")

        source = {"rewards": {f"r{i}": entry for i in range(count)}}
        sys.setprofile(counted)
        try:
            with pytest.raises(RecipeError, match=f"and {count * (1 + ('type' not in entry)) - 20} more keys$"):
                load(source)
        finally:
            sys.setprofile(None)
        work.append(calls)
    assert work[1] < 6 * work[0] and work[1] < 1_000_000, work


@pytest.mark.parametrize("checkpoint", ["/", "a\0b", "a" * 5000])
def test_checkpoints_that_lie_in_no_run(checkpoint):
    with pytest.raises(RecipeError):
        load(recipe_of(None, checkpoint))


def test_what_a_terminal_obeys_is_shown_by_every_command():
    result = CliRunner().invoke(app, ["report", "no\x1b[2Jwhere"])
    assert result.exit_code == 2 and "no\\x1b[2Jwhere" in result.output and "\x1b" not in result.output


def test_what_stands_twice_is_written_twice():
    shared = [1, 2]
    assert parse(render({"a": shared, "b": shared}), "here") == {"a": [1, 2], "b": [1, 2]}


# --- fuzzing -------------------------------------------------------------------------------------------------------

PIECES = (
    *(
        "&a ",
        "*a",
        "!!int ",
        "!",
        "<<: ",
        "%YAML 9\n",
        "---\n",
        "...\n",
        "? ",
        "- ",
        ": ",
        ", ",
        "{",
        "}",
        "[",
        "]",
        "|\n",
        ">\n",
    ),
    *(
        "null",
        "~",
        "true",
        "-1",
        "0",
        ".nan",
        ".inf",
        "-.inf",
        "1e999",
        "9" * 30,
        "0x" + "f" * 20,
        "2001-99-99",
        "[]",
        "{}",
        '""',
    ),
    *(
        "'",
        '"',
        '"\\0"',
        '"\\ud83d"',
        '"\\q"',
        "\t",
        "\n",
        "\r",
        "\x85",
        "\u2028",
        "\ufeff",
        "\0",
        "\ud800",
        "\x1b[2J",
        "#",
        "@",
        "`",
    ),
    *(
        "base: ",
        "drop: [a]\n",
        "type: ",
        "type: custom\n",
        "rewards: ",
        "model: ",
        "search: ",
        "objective: {type: ",
        "{a: " * 80,
    ),
)


def mutated(text: str, chance: random.Random) -> str:
    """One to four pieces put in, in place of something, or something taken out or moved."""
    for _ in range(chance.randint(1, 4)):
        start = chance.randrange(len(text) + 1)
        end = min(len(text), start + chance.choice((0, 0, 1, 5, 40)))
        text = text[:start] + chance.choice((*PIECES, "", text[end : end + 30])) + text[end:]
    return text


def outcome(call, *arguments) -> str:
    try:
        read = call(*arguments)
    except RecipeError as error:
        lines = str(error).split("\n")
        assert all(line.isprintable() and line for line in lines) and len(lines) <= 21, lines
        return "refused"
    assert isinstance(read, ServeFile) or load([parse(dump(read), "dump")]) == read
    return "read"


def test_mutated_files_are_read_or_refused(tmp_path):
    chance = random.Random(7)
    texts = ["\n".join(line for line in path.read_text().split("\n") if line[:1] != "#") for path in shipped().values()]
    service = "rewards:\n  quality: scene_match\n  sharp: {type: sharpness, batch: 4}\nserve:\n  port: 8001\n  host: 127.0.0.1\n"
    path = tmp_path / "mutated.yaml"
    seen = {"read": 0, "refused": 0}
    for i in range(300):
        call, text = (load, chance.choice(texts)) if i % 4 else (read_file, service)
        path.write_text(mutated(text, chance), encoding="utf-8", errors="surrogatepass")
        seen[outcome(call, path)] += 1
    assert min(seen.values()) > 10, seen

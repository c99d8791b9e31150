"""Recipes: overlays, overrides, errors by their exact words, and a round trip through YAML."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

import plaudit
from plaudit.errors import RecipeError
from plaudit.recipe.explain import nearest
from plaudit.recipe.load import as_recipe, dump, load, shipped
from plaudit.recipe.models import LoraConfig
from plaudit.recipe.objectives import GrpoConfig, NftConfig
from plaudit.recipe.schema import Recipe
from plaudit.recipe.text import parse, render

STEPS = {"train": {"steps": 5}}


def error_of(sources=(STEPS,), overrides: str = "") -> str:
    with pytest.raises(RecipeError) as caught:
        load(sources, overrides.split())
    return str(caught.value)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


# --- sources -------------------------------------------------------------------------------------------------------


def test_no_source_is_the_shipped_default():
    assert load() == load("default") == load([shipped()["default"]])
    assert load().name == "default"


def test_shipped_recipes_of_the_repository_are_all_found():
    folder = Path(__file__).parents[2] / "recipes"
    assert set(shipped()) == {path.stem for path in folder.glob("*.yaml")}
    assert {"default", "slots-nft", "slots-grpo", "pixels-nft", "pixels-grpo"} <= set(shipped())


@pytest.mark.parametrize("name", sorted(shipped()))
def test_every_shipped_recipe_resolves_and_survives_a_round_trip(name):
    recipe = load(name)
    assert recipe.name == name
    assert load([parse(dump(recipe), name)]) == recipe
    assert shipped()[name].read_text(encoding="utf-8").startswith("# ")


def test_shipped_grpo_starter_has_the_agreed_values():
    recipe = load("slots-grpo")
    assert (recipe.sampler.kernel, recipe.sampler.level, recipe.model.name) == ("flow_sde", 0.7, "slots")
    assert isinstance(recipe.objective, GrpoConfig)
    assert (recipe.objective.density, recipe.objective.clip_low, recipe.objective.clip_high) == ("exact", 0.2, 0.2)
    assert (recipe.train.lr, recipe.train.prompts_per_step, recipe.train.samples_per_prompt) == (1e-4, 12, 16)
    assert load("pixels-grpo").model.name == "pixels"
    assert load("pixels-grpo").objective == recipe.objective


def test_one_source_may_stand_without_a_list():
    assert load(STEPS) == load([STEPS])
    assert load("slots-nft") == load(["slots-nft"])


def test_base_is_relative_to_the_file_that_names_it(tmp_path):
    (tmp_path / "below").mkdir()
    write(tmp_path / "first.yaml", "train: {steps: 7, lr: 2e-4}\n")
    write(tmp_path / "below" / "second.yaml", "base: ../first.yaml\ntrain: {steps: 8}\n")
    recipe = load([tmp_path / "below" / "second.yaml"])
    assert (recipe.train.steps, recipe.train.lr) == (8, 2e-4)


def test_base_may_be_a_shipped_name(tmp_path):
    recipe = load(str(write(tmp_path / "mine.yaml", "base: slots-grpo\ntrain: {lr: 5e-5}\n")))
    assert recipe.objective.type == "grpo"
    assert recipe.train.lr == 5e-5


def test_a_file_without_a_name_is_named_after_itself_not_after_its_base(tmp_path):
    mine = write(tmp_path / "mine.yaml", "base: slots-grpo\n")
    overlay = write(tmp_path / "fast.yaml", "train: {steps: 2}\n")
    assert load([mine]).name == "mine"
    assert load([mine, overlay]).name == "mine"
    assert load([write(tmp_path / "own.yaml", "base: slots-grpo\nname: given\n")]).name == "given"


def test_a_circle_of_bases_is_named(tmp_path):
    first = write(tmp_path / "a.yaml", "base: b.yaml\n")
    second = write(tmp_path / "b.yaml", "base: a.yaml\n")
    message = error_of([first])
    assert message == (
        f"`base`: recipes are based on each other in a circle: {first} -> {second} -> {first}; take one `base` out"
    )


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "recipe {path} is empty; write at least one key, for example `base: default`"),
        ("# only a comment\n", "recipe {path} is empty; write at least one key, for example `base: default`"),
        (
            "- a\n- b\n",
            'recipe {path}: the top level is ["a", "b"]; it must be keys, for example `train: {{steps: 50}}`',
        ),
        ("text", 'recipe {path}: the top level is "text"; it must be keys, for example `train: {{steps: 50}}`'),
        ("name: a\nname: b\n", "{path}, line 2, column 1: key `name` is already on line 1; mend the YAML there"),
        ("name: [a\n", "{path}, line 2, column 1: expected ',' or ']', but got '<stream end>'; mend the YAML there"),
        ("base: [a, b]\n", '`base` is ["a", "b"] (from {path}); it must be one file or the name of a shipped recipe'),
    ],
)
def test_files_that_are_no_recipe(tmp_path, text, expected):
    path = write(tmp_path / "bad.yaml", text)
    assert error_of([path]) == expected.format(path=path)


def test_keys_written_twice_are_found_at_any_depth(tmp_path):
    path = write(tmp_path / "twice.yaml", "train:\n  lr: 1e-4\n  steps: 3\n  lr: 2e-4\n")
    assert error_of([path]) == f"{path}, line 4, column 3: key `lr` is already on line 2; mend the YAML there"


def test_text_that_is_not_utf8_is_an_error(tmp_path):
    path = tmp_path / "latin.yaml"
    path.write_bytes("name: caf\xe9".encode("latin-1"))
    assert "it must be a UTF-8 text file" in error_of([path])


def test_a_source_that_does_not_exist_suggests_a_shipped_one():
    names = ", ".join(shipped())
    assert error_of(["slots-nfd"]) == (
        f"recipe 'slots-nfd': no such file ({Path.cwd() / 'slots-nfd'}) or shipped recipe; did you mean slots-nft? shipped: "
        f"{names}"
    )
    assert error_of(["train.steps=5"]).endswith("; to override a key write --train.steps=5")


# --- overlays ------------------------------------------------------------------------------------------------------


def test_later_sources_win_and_mappings_merge_at_depth():
    recipe = load([{"train": {"steps": 5, "lr": 1e-4}}, {"train": {"lr": 2e-4}, "evaluate": {"sampler": {"steps": 4}}}])
    assert (recipe.train.steps, recipe.train.lr) == (5, 2e-4)
    assert recipe.evaluate.sampler.steps == 4
    assert recipe.evaluate.every == Recipe.model_fields["evaluate"].default.every


def test_lists_replace():
    first = {"prompts": {"categories": ["single", "count"]}}
    assert load([STEPS, first, {"prompts": {"categories": ["two"]}}]).prompts.categories == ("two",)


def test_changing_the_type_of_a_component_starts_from_its_defaults():
    grpo = {"objective": {"type": "grpo", "clip_low": 0.1}, "sampler": {"kernel": "cps"}}
    assert load([grpo, {"objective": {"type": "nft"}}]).objective == NftConfig()
    back = load([grpo, {"objective": {"type": "nft", "beta": 0.5}}, {"objective": {"type": "grpo"}}])
    assert back.objective == GrpoConfig(type="grpo")
    same = load([grpo, {"objective": {"type": "grpo", "clip_high": 0.3}}])
    assert same.objective == GrpoConfig(type="grpo", clip_low=0.1, clip_high=0.3)


def test_an_overlay_edits_the_resolved_recipe_even_where_nothing_was_written():
    recipe = load([{}], ["--objective.beta", "0.5", "--rewards.match.weight", "2", "--train.lr", "1e-5"])
    assert recipe.objective == NftConfig(beta=0.5)
    assert recipe.rewards["match"].type == "scene_match"
    assert recipe.rewards["match"].weight == 2
    assert (recipe.train.minutes, recipe.train.lr) == (5.0, 1e-5)


def test_a_train_section_that_is_written_does_not_inherit_the_default_minutes():
    assert load([STEPS]).train.minutes is None


def test_rewards_add_up_and_null_takes_one_out():
    first = {**STEPS, "rewards": {"exact": "scene_exact"}}
    assert list(load([first]).rewards) == ["exact"]
    both = load([first, {"rewards": {"match": {"type": "scene_match", "weight": 2}}}])
    assert {name: reward.weight for name, reward in both.rewards.items()} == {"exact": 1.0, "match": 2.0}
    assert list(load([first, {"rewards": {"match": "scene_match", "exact": None}}]).rewards) == ["match"]
    assert error_of([first], "--rewards.other null") == (
        "`rewards.other` is null (from the command line); it must be a mapping with keys type, weight, arguments, calibrate, "
        "batch, concurrency, deadline_s, retries, retry_budget, deterministic, cache, python, learn"
    )


def test_changing_the_type_of_a_reward_drops_the_arguments_of_the_old_one():
    first = {**STEPS, "rewards": {"match": {"type": "a:b", "arguments": {"scale": 3}}}}
    changed = load([first, {"rewards": {"match": {"type": "c:d"}}}])
    assert changed.rewards["match"].arguments == {}
    kept = load([first, {"rewards": {"match": {"arguments": {"shift": 1}}}}])
    assert kept.rewards["match"].arguments == {"scale": 3, "shift": 1}


CUSTOM = {
    "model": {"type": "custom", "factory": "a:b", "arguments": {"scale": 3, "depth": 2}, "makes": "flow"},
    "search": {"method": "smc", "budget": "64rewards", "options": {"particles": 8}},
    "rewards": {"match": "scene_match", "exact": "scene_exact"},
}


@pytest.mark.parametrize(
    ("change", "arguments", "options"),
    [
        ({"model": {"factory": "c:d"}}, {}, {"particles": 8}),
        ({"model": {"factory": "c:d", "arguments": {"depth": 4}}}, {"depth": 4}, {"particles": 8}),
        ({"model": {"factory": "a:b", "arguments": {"depth": 4}}}, {"scale": 3, "depth": 4}, {"particles": 8}),
        ({"search": {"method": "best_of_n"}}, {"scale": 3, "depth": 2}, {}),
        ({"drop": ["model.arguments"], "model": {"arguments": {"depth": 4}}}, {"depth": 4}, {"particles": 8}),
        ({"drop": ["model.arguments.scale", "search"]}, {"depth": 2}, {}),
    ],
)
def test_what_belongs_to_a_changed_value_goes_with_it_and_any_key_can_be_dropped(change, arguments, options):
    recipe = load([STEPS, CUSTOM, change])
    assert (recipe.model.arguments, recipe.search.options) == (arguments, options)
    assert recipe.search.budget == ("200nfe" if "drop" in change and "search" in change["drop"] else "64rewards")


def test_weights_belong_to_the_network_and_settings_to_the_task():
    slots = {"model": {"name": "slots", "weights": "mine.safetensors"}}
    assert load([STEPS, slots, {"model": {"name": "pixels"}}]).model.weights is None
    puzzles = {"prompts": {"type": "puzzles", "task": "countdown", "config": {"numbers": 4}}}
    assert load([STEPS, puzzles, {"prompts": {"task": "maze"}}]).prompts.config == {}


def test_keys_are_dropped_by_files_and_the_command_line_and_only_where_they_are(tmp_path):
    mine = write(tmp_path / "mine.yaml", "base: slots-grpo\ndrop: [train.lr, objective]\n")
    recipe = load([mine], "--drop rewards.match --rewards.exact scene_exact --drop [evaluate.every]".split())
    assert (recipe.train.lr, recipe.objective, list(recipe.rewards)) == (3e-4, NftConfig(), ["exact"])
    assert recipe.train.prompts_per_step == load("slots-grpo").train.prompts_per_step
    assert recipe.evaluate.every == 20
    assert error_of([STEPS], "--drop train.step") == (
        "`drop`: no source before the command line has the key `train.step`; did you mean `train.steps`?"
    )
    assert error_of([{**STEPS, "drop": {"a": 1}}]) == (
        '`drop` is {"a": 1} (from the mapping given); it must be dotted keys to take out, such as [model.arguments.scale]'
    )


def test_shorthands():
    recipe = load([{**STEPS, "model": "lab/pixels", "rewards": {"a": "scene_match"}, "evaluate": {"reward": "x:y"}}])
    assert (recipe.model.type, recipe.model.name) == ("lab", "pixels")
    assert recipe.rewards["a"].type == "scene_match"
    assert recipe.evaluate.reward.type == "x:y"
    assert error_of([{"model": "sd3"}]) == (
        '`model` is "sd3"; as one word it can be lab/ and slots, slots-turbo, pixels, sums, edits; any other '
        "model is a mapping such as `model: {type: sd3, path: FOLDER}`"
    )


def test_sources_are_not_changed():
    first, second = (
        {**STEPS, "rewards": {"match": "scene_match"}},
        {"rewards": {"match": {"weight": 3}}, "base": "default"},
    )
    before = repr((first, second))
    load([first, second], ["--train.steps", "9"])
    assert repr((first, second)) == before


# --- overrides -----------------------------------------------------------------------------------------------------


def test_override_values_are_yaml():
    tokens = "--train.steps 50 --train.lr=1e-4 --model.lora.rank 4 --train.betas [0.8,0.9] --sampler.same_noise true"
    recipe = load([STEPS], tokens.split())
    assert (recipe.train.steps, recipe.train.lr, recipe.train.betas) == (50, 1e-4, (0.8, 0.9))
    assert recipe.model.lora == LoraConfig(rank=4)
    assert recipe.sampler.same_noise is True
    without = {**STEPS, "model": {"type": "sd3", "path": "folder"}}
    assert load([without]).model.lora == LoraConfig()
    assert load([without], ["--model.lora", "null"]).model.lora is None


def test_the_order_of_overrides_does_not_lose_any():
    one = load([STEPS], "--sampler.kernel cps --objective.clip_low 0.1 --objective.type grpo".split())
    other = load([STEPS], "--objective.type grpo --sampler.kernel cps --objective.clip_low 0.1".split())
    assert one == other
    assert one.objective.clip_low == 0.1
    assert load([STEPS], "--model.lora.rank 4 --model lab/pixels".split()).model.lora == LoraConfig(rank=4)


def test_a_repeated_override_takes_its_last_value():
    assert load([STEPS], "--train.steps 6 --train.steps 7".split()).train.steps == 7


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        ("--train.steps", "--train.steps: the value is missing; write --train.steps VALUE or --train.steps=VALUE"),
        ("--train.steps=", "--train.steps: the value is missing; write --train.steps VALUE or --train.steps=VALUE"),
        ("--train.lr --run.seed 3", "--train.lr: the value is missing; write --train.lr VALUE or --train.lr=VALUE"),
        ("train.steps 3", "override 'train.steps': write --section.key VALUE, for example --train.steps 50"),
        ("--train..steps 3", "override '--train..steps': write --section.key VALUE, for example --train.steps 50"),
        (
            "--train.betas [0.9",
            "--train.betas '[0.9', line 1, column 5: expected ',' or ']', but got '<stream end>'; mend the YAML there",
        ),
    ],
)
def test_overrides_that_are_not_key_and_value(tokens, expected):
    assert error_of([STEPS], tokens) == expected


# --- errors of validation ------------------------------------------------------------------------------------------

TRAIN_KEYS = ", ".join(type(load().train).model_fields)
TOP_KEYS = ", ".join(Recipe.model_fields)
NFT_KEYS = ", ".join(NftConfig.model_fields)


@pytest.mark.parametrize(
    ("tokens", "expected"),
    [
        (
            "--train.step 50",
            "unknown key `train.step`; did you mean `train.steps`? (value 50 from the command line; keys of `train`: "
            f"{TRAIN_KEYS})",
        ),
        (
            "--trian.steps 50",
            "unknown key `trian.steps`; did you mean `train.steps`? (value 50 from the command line; top-level keys: "
            f"{TOP_KEYS})",
        ),
        (
            "--lr 1",
            f"unknown key `lr`; did you mean `train.lr`? (value 1 from the command line; top-level keys: {TOP_KEYS})",
        ),
        (
            "--objective.clip_low .1",
            "unknown key `objective.clip_low`; it belongs to `objective.type` grpo (value 0.1 from the command line; "
            f"keys of `objective`: {NFT_KEYS})",
        ),
        (
            "--objective.path X",
            'unknown key `objective.path`; did you mean `objective.class`? (value "X" from the command line; '
            f"keys of `objective`: {NFT_KEYS})",
        ),
        (
            "--model.lora.dtype bf16",
            'unknown key `model.lora.dtype` (value "bf16" from the command line; keys of `model.lora`: rank, alpha, '
            "targets)",
        ),
        (
            "--train.steps abc",
            '`train.steps` is "abc" (from the command line); it must be a valid integer or null',
        ),
        ("--train.lr -1", "`train.lr` is -1 (from the command line); it must be greater than 0"),
        ("--train.lr .inf", "`train.lr` is Infinity (from the command line); it must be a finite number"),
        ("--train.lr null", "`train.lr` is null (from the command line); it must be a valid number"),
        ("--train.betas [0.9,2]", "`train.betas[1]` is 2 (from the command line); it must be less than or equal to 1"),
        ("--train.betas [0.9]", "`train.betas[1]` is missing; give the list more items"),
        (
            "--sampler.kernel flow",
            '`sampler.kernel` is "flow" (from the command line); allowed: ode, flow_sde, constant_eta, cps, ddim_eta or '
            "your own, `package.module:thing`; did you mean flow_sde?",
        ),
        (
            "--objective.type nff",
            '`objective.type` is "nff" (from the command line); allowed: grpo, nft, drpo, likelihood, dpo, '
            "sft, gradient, flow_dpo, rwr, custom; did you mean nft?",
        ),
        ("--prompts.type file", "`prompts.train` is missing; give it a value, for example --prompts.train VALUE"),
        (
            "--prompts.categories [cuont]",
            '`prompts.categories[0]` is "cuont" (from the command line); allowed: single, count, two, relation, '
            "counttwo, three; did you mean count?",
        ),
        (
            "--model.lora 3",
            "`model.lora` is 3 (from the command line); it must be a mapping with keys rank, alpha, targets or null",
        ),
        (
            "--model.lora.targets 5",
            "`model.lora.targets` is 5 (from the command line); it must be a valid list or auto",
        ),
        (
            "--model 5",
            "`model` is 5 (from the command line); it must be a mapping with `type` lab, sd3, transformers, vision, "
            "custom",
        ),
        ("--rewards [1]", "`rewards` is [1] (from the command line); it must be a mapping"),
        (
            "--run.name 123",
            "`run.name` is 123 (from the command line); it must be text: write it in quotes, '\"123\"' on the "
            "command line",
        ),
        ("--rewards.match null", "rewards: name at least one reward, for example `match: {type: scene_match}`"),
    ],
)
def test_validation_errors_in_full(tokens, expected):
    assert error_of([STEPS], tokens) == expected


def test_every_error_has_its_own_line_and_says_which_source_set_it(tmp_path):
    path = write(tmp_path / "mine.yaml", "train: {steps: 5, lr: fast}\nmodel: {type: lab, nam: slots}\n")
    assert error_of([path], "--run.seed -1").splitlines() == [
        f'unknown key `model.nam`; did you mean `model.name`? (value "slots" from {path}; keys of `model`: type, name, '
        "weights, lora)",
        f'`train.lr` is "fast" (from {path}); it must be a valid number',
        "`run.seed` is -1 (from the command line); it must be greater than or equal to 0",
    ]


TOKENS = {
    **{"model": "lab/sums", "prompts": {"type": "sums"}, "rewards": {"match": None, "correct": "sum_correct"}},
    **{"sampler": {"type": "tokens"}, "evaluate": {"reward": "sum_correct", "sampler": {"type": "tokens"}}},
}


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"type": "sft"}, "train.updates_per_step: 8 .*prompts_per_step 12 rows; use a divisor of 12"),
        ({"type": "sft", "keep": "best"}, None),
        ({"type": "dpo"}, "train.updates_per_step: 8 .* 12 rows"),
        ({"type": "grpo"}, None),
        (
            {"type": "likelihood", "reward": "correct", "kl": {"weight": 0.1, "scaling": "k1", "place": "reward"}},
            "objective.kl.place: reward with objective likelihood",
        ),
    ],
)
def test_what_an_objective_cannot_do_is_refused_before_a_run(changes, expected):
    layers = [TOKENS, {"objective": changes, "train": {"steps": 1, "minutes": None, "updates_per_step": 8}}]
    if expected is None:
        assert load(layers).train.updates_per_step == 8
        return
    with pytest.raises(RecipeError, match=expected):
        load(layers)


def test_whole_groups_cannot_be_split_further():
    plan = {"steps": 1, "minutes": None, "prompts_per_step": 4, "samples_per_prompt": 4, "updates_per_step": 8}
    with pytest.raises(RecipeError, match=r"updates_per_step: 8 for objective sft, .* 4 groups; use at most 4"):
        load([TOKENS, {"objective": {"type": "sft", "keep": "best"}, "train": plan}])


def test_schema_rules_keep_their_own_words():
    assert error_of([STEPS], "--objective.type grpo").startswith("objective.type grpo needs stochastic steps: set ")
    assert error_of([STEPS], "--train.updates_per_step 5").startswith("train.updates_per_step: 192 samples ")


@pytest.mark.parametrize(
    ("unknown", "expected"),
    [
        ("train.clip", ["train.grad_clip", "shaping.clip"]),
        ("steps", ["train.steps"]),
        ("trian.learning", []),
        ("train.zzz", []),
    ],
)
def test_nearest_looks_beside_the_key_and_for_the_same_name_elsewhere(unknown, expected):
    known = ["train", "train.steps", "train.grad_clip", "shaping", "shaping.clip", "evaluate.sampler.steps"]
    assert nearest(unknown, known) == expected


# --- text ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("3E+2", 300.0),
        (".5", 0.5),
        ("-2", -2),
        ("0x10", 16),
        ("on", "on"),
        ("no", "no"),
        ("12:30", "12:30"),
        ("007", "007"),
        ("2024-01-01", "2024-01-01"),
        ("none", "none"),
        ("~", None),
        ("true", True),
    ],
)
def test_plain_scalars_follow_yaml_1_2(text, value):
    parsed = parse(text, "here")
    assert parsed == value
    assert type(parsed) is type(value)


SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12)
    | st.sampled_from(["1e-4", "on", "null", "~", "1_0", "0o7", "007", "12:30", "=", "<<", "- a", ".inf", "2024-01-01"])
)
ARGUMENTS = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=8),
    st.recursive(
        SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab", max_size=2), inner)
    ),
    max_size=4,
)


@settings(max_examples=150, deadline=None)
@given(arguments=ARGUMENTS, lr=st.floats(1e-12, 1.0), name=st.sampled_from(["1e5", "yes", "3", "a: b", "#", "ä"]))
def test_dump_loads_back_to_an_equal_recipe(arguments, lr, name):
    source = {
        "name": name,
        "train": {"steps": 3, "lr": lr},
        "rewards": {"r": {"type": "x:y", "arguments": arguments}},
        "sampler": {"window": {"size": 2, "start": [0, 3]}},
    }
    recipe = load([source])
    assert recipe.rewards["r"].arguments == arguments
    assert load([parse(dump(recipe), "dump")]) == recipe


def test_what_is_no_yaml_cannot_be_dumped():
    recipe = load([{**STEPS, "rewards": {"r": {"type": "x:y", "arguments": {"scale": len}}}}])
    with pytest.raises(
        RecipeError, match=r"^a value of type builtin_function_or_method cannot be written in a recipe; use"
    ):
        dump(recipe)


def test_dumped_text_means_the_same_to_a_yaml_1_1_reader():
    document = {"name": "on", "time": "12:30", "lr": 1e-5, "code": "1e-5", "no": "007"}
    assert yaml.safe_load(render(document)) == document


# --- imports -------------------------------------------------------------------------------------------------------


def test_reading_recipes_imports_no_torch():
    script = (
        "import sys, plaudit, plaudit.recipe.load as l, plaudit.cli, plaudit.systems; l.load(); "
        "plaudit.systems.load_systems(); plaudit.load; plaudit.Recipe; plaudit.Prompt; dir(plaudit); "
        "heavy = {'torch', 'numpy', 'scipy', 'matplotlib', 'rich', 'transformers'} & set(sys.modules); "
        "sys.exit(', '.join(heavy) or None)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_public_names():
    assert plaudit.load is load
    assert plaudit.Recipe is Recipe
    assert {"align", "load", "Recipe", "Prompt", "Score"} <= set(dir(plaudit))
    with pytest.raises(AttributeError, match="module 'plaudit' has no attribute 'nothing'; it has Prompt, Recipe"):
        plaudit.nothing  # noqa: B018


def test_a_null_override_takes_a_reward_out_also_beside_other_rewards() -> None:
    recipe = load("slots-nft", ["--rewards.match", "null", "--rewards.bright", "brightness"])
    assert list(recipe.rewards) == ["bright"]


# --- runs and Python -----------------------------------------------------------------------------------------------


def run_in(folder: Path, **changes: object) -> Path:
    folder.mkdir(parents=True)
    recipe = load(["slots-nft", {"run": {"folder": "elsewhere", "name": "then", "seed": 7, **changes}}])
    (folder / "recipe.yaml").write_text(dump(recipe), encoding="utf-8")
    (folder / "samples").mkdir()
    return folder


def test_a_run_folder_is_the_recipe_in_it_and_the_run_is_where_the_folder_is(tmp_path, monkeypatch):
    folder = run_in(tmp_path / "runs" / "k")
    for source in (folder, str(folder), f"{folder}/"):
        recipe = load(source)
        assert (recipe.run.folder, recipe.run.name, recipe.run.seed) == (str(folder.parent), "k", 7)
        assert recipe.name == "slots-nft"
    monkeypatch.chdir(tmp_path)
    assert (load("runs/k").run.folder, load("runs/k").run.name) == ("runs", "k")
    monkeypatch.chdir(folder)
    assert load(".").run.name == "k" and Path(load(".").run.folder) == folder.parent
    assert load(folder, ["--run.name", "other"]).run.name == "other"
    assert load([folder / "recipe.yaml"]).run.name == "then", "the file itself is only a recipe"
    (tmp_path / "based.yaml").write_text("base: runs/k\ntrain: {lr: 1e-5}\n", encoding="utf-8")
    based = load(tmp_path / "based.yaml")
    assert (based.run.folder, based.run.seed, based.train.lr) == ("elsewhere", 7, 1e-5)


def test_a_folder_without_a_recipe_is_called_one(tmp_path):
    assert error_of([str(tmp_path)]).startswith(f"recipe {str(tmp_path)!r}: the folder holds no recipe.yaml; shipped: ")


@pytest.mark.parametrize("given", ("slots-grpo", {"base": "slots-grpo", "name": "slots-grpo"}, load("slots-grpo")))
def test_whatever_names_a_recipe_is_one(given):
    assert as_recipe(given, "align") == load("slots-grpo")


@pytest.mark.parametrize("given", (3, None, ["slots-grpo"], b"slots-grpo"))
def test_what_names_no_recipe_is_told_what_would(given):
    with pytest.raises(RecipeError, match=r"^align: the recipe is .*; give a Recipe .* shipped name .* mapping"):
        as_recipe(given, "align")

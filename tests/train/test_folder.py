"""Run folders: names are not reused, recipes may not change under a run, and a full disk is one clear error."""

from __future__ import annotations

import errno
import json
import os
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch
from PIL import Image
from tests.reference import toys
from tests.reference.toys import GRPO, toy_recipe
from torch import nn

import plaudit.train.loop as loop
from plaudit import storage
from plaudit.errors import RecipeError, RunError
from plaudit.recipe.load import load
from plaudit.runs.claim import open_run
from plaudit.runs.folder import RunFolder


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


def root_of(tmp_path: Path) -> Path:
    return tmp_path / "runs" / "toy"


# --- names and recipes -----------------------------------------------------------------------------------------------


def test_a_name_is_not_reused_by_accident(tmp_path: Path) -> None:
    loop.train(toy_recipe(tmp_path))
    before = (root_of(tmp_path) / "metrics.jsonl").read_bytes()
    with pytest.raises(RunError, match="exists; go on with --resume, replace it with --overwrite, or choose another"):
        loop.train(toy_recipe(tmp_path))
    assert (root_of(tmp_path) / "metrics.jsonl").read_bytes() == before
    (root_of(tmp_path) / "stray").write_text("")
    loop.train(toy_recipe(tmp_path), overwrite=True)
    assert not (root_of(tmp_path) / "stray").exists()
    assert (root_of(tmp_path) / "metrics.jsonl").read_bytes() == before
    loop.train(toy_recipe(tmp_path, {"run": {"name": "other"}}))
    assert (tmp_path / "runs" / "other" / "metrics.jsonl").read_bytes() == before


def test_a_run_that_was_refused_before_it_began_leaves_its_name_free(tmp_path: Path, monkeypatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(toys, "redness", lambda prompts, outputs: [float(i) for i in range(len(prompts))])
        with pytest.raises(RunError, match="a check failed"):
            loop.train(toy_recipe(tmp_path))
    assert (root_of(tmp_path) / "checks.json").exists()
    loop.train(toy_recipe(tmp_path))
    with pytest.raises(RunError, match="exists; go on with --resume"):
        loop.train(toy_recipe(tmp_path))


def test_a_stray_file_keeps_a_name_taken(tmp_path: Path) -> None:
    root_of(tmp_path).mkdir(parents=True)
    (root_of(tmp_path) / "notes.txt").write_text("mine")
    with pytest.raises(RunError, match="exists"):
        loop.train(toy_recipe(tmp_path))
    assert (root_of(tmp_path) / "notes.txt").read_text() == "mine"


def test_resuming_nothing_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"--resume: .* has no complete checkpoint; start it without --resume"):
        loop.train(toy_recipe(tmp_path), resume=True)
    assert not root_of(tmp_path).exists()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"train": {"lr": 0.5}}, "train.lr is 0.5 and was {train.lr} in"),
        ({"run": {"seed": 1}}, "run.seed is 1 and was 0 in"),
        ({"sampler": {"steps": 5}}, "sampler.steps is 5 and was {sampler.steps} in"),
        ({"evaluate": {"prompts": 2}}, "evaluate.prompts is 2 and was {evaluate.prompts} in"),
        (
            {"rewards": {"more": "plaudit.rewards.rules.pixels:brightness"}},
            'rewards.more is {{"type": "plaudit.rewards.rules.pixels:brightness".* and was absent in',
        ),
        (GRPO, 'objective.type is "grpo" and was "nft"; .*; and [0-9]+ more in'),
    ],
)
def test_a_run_is_not_resumed_with_another_recipe(change: dict, named: str, tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path)
    loop.train(recipe)
    expected = named.format(train=recipe.train, sampler=recipe.sampler, evaluate=recipe.evaluate)
    with pytest.raises(RunError, match=f"^--resume: .*{expected} .*recipe.yaml. Only train.steps, .* may change"):
        loop.train(toy_recipe(tmp_path, change), resume=True)


def test_what_does_not_change_numbers_may_change(tmp_path: Path) -> None:
    loop.train(toy_recipe(tmp_path))
    longer = {"train": {"steps": 4}, "run": {"save_every": 7, "keep_checkpoints": 1}}
    result = loop.train(toy_recipe(tmp_path, longer), resume=True)
    assert result.summary["steps"] == 4
    assert "steps: 4" in (root_of(tmp_path) / "recipe.yaml").read_text()


def test_metrics_never_hold_nan(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    folder.append("metrics.jsonl", {"step": 1, "a": float("nan"), "b": [float("inf"), 1.5], "c": {"d": float("nan")}})
    folder.write_json("deep/summary.json", {"x": float("nan"), "text": "nan"})
    assert json.loads((tmp_path / "metrics.jsonl").read_text()) == {
        "step": 1,
        "a": None,
        "b": [None, 1.5],
        "c": {"d": None},
    }
    assert json.loads((tmp_path / "deep/summary.json").read_text()) == {"x": None, "text": "nan"}


def test_rewinding_forgets_what_came_after_and_half_lines(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    for step in (1, 2, 3):
        folder.append("metrics.jsonl", {"step": step})
    for step, label in ((0, "before"), (2, "step"), (3, "step"), (2, "after")):
        folder.append("evaluations.jsonl", {"step": step, "label": label})
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 2, "re')
    sums = folder.checksums(2)
    folder.rewind(2, sums)
    folder.rewind(2, sums)
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 1}\n{"step": 2}\n'
    kept = [json.loads(line) for line in (tmp_path / "evaluations.jsonl").read_text().splitlines()]
    assert kept == [{"step": 0, "label": "before"}, {"step": 2, "label": "step"}]


# --- disks that refuse -----------------------------------------------------------------------------------------------


def test_a_file_in_place_of_the_runs_folder_is_one_clear_error(tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path)
    (tmp_path / "runs").write_text("not a folder")
    with pytest.raises(RunError, match=r"cannot write .*toy: .*runs is not a folder; choose another"):
        loop.train(recipe)


@pytest.mark.parametrize("overwrite", (False, True))
def test_a_file_in_place_of_the_run_is_one_clear_error(overwrite: bool, tmp_path: Path) -> None:
    recipe = toy_recipe(tmp_path)
    (tmp_path / "runs").mkdir()
    root_of(tmp_path).write_text("precious")
    with pytest.raises(RunError, match="toy"):
        loop.train(recipe, overwrite=overwrite)
    assert root_of(tmp_path).read_text() == "precious"


def test_a_read_only_folder_is_one_clear_error(tmp_path: Path, monkeypatch) -> None:
    recipe = toy_recipe(tmp_path)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(RunError, match=r"cannot write .*toy: .* is read-only; choose another --run\.folder"):
        loop.train(recipe)


@pytest.mark.parametrize("blocked", ("checkpoints", "evaluations", "samples/step_000002.png"))
def test_something_in_the_way_is_one_clear_error_and_the_checkpoint_stays(blocked: str, tmp_path: Path) -> None:
    """Root may write anywhere, so a file stands where a folder must go, or a folder where a file must."""
    recipe = toy_recipe(tmp_path, {"train": {"steps": 4}})
    short = toy_recipe(tmp_path, {"train": {"steps": 1}})
    loop.train(short)
    target = root_of(tmp_path) / blocked
    if blocked == "checkpoints":
        (target / ".step_3.partial").write_text("in the way of the third checkpoint")
    elif target.suffix:
        target.unlink(missing_ok=True)
        target.mkdir()
    else:
        shutil.rmtree(target)
        target.write_text("in the way")
    with pytest.raises(RunError, match="cannot write"):
        loop.train(recipe, resume=True)
    latest = storage.latest_snapshot(root_of(tmp_path) / "checkpoints")
    assert latest is not None and storage.is_complete(latest)


FULL = OSError(errno.ENOSPC, "No space left on device")


@pytest.mark.parametrize("what", ("tensors", "marker", "log", "picture", "final weights"))
def test_a_full_disk_is_one_clear_error_and_the_run_resumes(what: str, tmp_path: Path, monkeypatch) -> None:
    loop.train(toy_recipe(tmp_path / "whole"))
    expected = (root_of(tmp_path / "whole") / "metrics.jsonl").read_bytes()
    recipe = toy_recipe(tmp_path)
    real_save, real_text, real_open = storage.save_file, Path.write_text, Path.open

    def save_file(tensors, path):
        if "step_2" in str(path):
            Path(path).write_bytes(b"half")
            raise FULL
        real_save(tensors, path)

    def write_text(self, text, **options):
        if self.name == storage.MARKER and "step_2" in str(self):
            raise FULL
        return real_text(self, text, **options)

    class FullFile:
        def __init__(self, file) -> None:
            self.file = file

        def __enter__(self):
            return self

        def __exit__(self, *error) -> None:
            self.file.close()

        def write(self, text: str) -> None:
            self.file.write(text[:20])
            raise FULL

    def open_(self, mode="r", *args, **options):
        file = real_open(self, mode, *args, **options)
        full = self.name == "metrics.jsonl" and mode == "a" and real_open(self).read().count("\n") == 1
        return FullFile(file) if full else file

    with monkeypatch.context() as patch:
        if what == "tensors":
            patch.setattr(storage, "save_file", save_file)
        elif what == "marker":
            patch.setattr(Path, "write_text", write_text)
        elif what == "log":
            patch.setattr(Path, "open", open_)
        elif what == "picture":
            real_picture = Image.Image.save

            def save(self, path, *args, **options):
                if "step_000002" in str(path):
                    raise FULL
                real_picture(self, path, *args, **options)

            patch.setattr(Image.Image, "save", save)
        else:

            def refuse(self, folder):
                raise FULL

            patch.setattr(toys.ToyFlowModel, "save", refuse)
        with pytest.raises(RunError, match=r"cannot write .*No space left on device.*--resume") as caught:
            loop.train(recipe)
    assert "\n" not in str(caught.value)
    latest = storage.latest_snapshot(root_of(tmp_path) / "checkpoints")
    assert latest.name == {"tensors": "step_1", "marker": "step_1", "log": "step_1", "picture": "step_1"}.get(
        what, "step_3"
    )
    assert not list((root_of(tmp_path) / "checkpoints").glob(".*.partial")), (
        "a failed write leaves no rubbish on a full disk"
    )
    loop.train(recipe, resume=True)
    assert (root_of(tmp_path) / "metrics.jsonl").read_bytes() == expected


def test_a_file_size_limit_in_a_real_process(tmp_path: Path) -> None:
    """safetensors reports the refusal of the kernel in its own type; it must come out as ours."""
    torch.set_num_threads(1)
    child = os.fork()
    if child == 0:
        code = 1
        try:
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))
            storage.write_snapshot(tmp_path / "step_1", {"w": torch.zeros(100)}, {"n": 1})
            try:
                storage.write_snapshot(tmp_path / "step_2", {"w": torch.zeros(100_000)}, {"n": 2})
            except RunError as error:
                code = 0 if "cannot write" in str(error) and "step_2" in str(error) else 5
        finally:
            os._exit(code)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert storage.latest_snapshot(tmp_path) == tmp_path / "step_1"


# --- snapshots -------------------------------------------------------------------------------------------------------


def test_a_snapshot_reads_back_bit_for_bit(tmp_path: Path) -> None:
    tensors = {
        "half": torch.randn(3, 2).half(),
        "double": torch.tensor([float("nan"), -0.0, 1e-310], dtype=torch.float64),
        "transposed": torch.arange(6.0).reshape(2, 3).T,
        "scalar": torch.tensor(7),
        "empty": torch.zeros(0, 4),
    }
    storage.write_snapshot(tmp_path / "step_1", tensors, {"a": [1, "ü"]})
    read, meta = storage.read_snapshot(tmp_path / "step_1")
    assert meta == {"a": [1, "ü"]} and set(read) == set(tensors)
    for name, tensor in tensors.items():
        assert read[name].dtype == tensor.dtype and read[name].shape == tensor.shape
        assert (
            read[name].contiguous().view(torch.uint8).tolist() == tensor.contiguous().view(torch.uint8).tolist()
            if tensor.ndim
            else read[name] == tensor
        )


def test_writing_again_replaces(tmp_path: Path) -> None:
    for value in (1.0, 2.0):
        storage.write_snapshot(tmp_path / "step_1", {"w": torch.tensor([value])}, {"v": value})
    assert storage.read_snapshot(tmp_path / "step_1")[1] == {"v": 2.0}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_1"]


def test_the_latest_is_the_largest_number_not_the_last_in_the_alphabet(tmp_path: Path) -> None:
    for step in (9, 10, 100, 20):
        storage.write_snapshot(tmp_path / f"step_{step}", {}, {})
    assert storage.latest_snapshot(tmp_path).name == "step_100"
    storage.prune_snapshots(tmp_path, keep=2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_100", "step_20"]
    assert storage.latest_snapshot(tmp_path / "absent") is None


def test_pruning_does_not_count_what_is_broken(tmp_path: Path) -> None:
    """Two harmed newer checkpoints must not push out the only sound one."""
    for step in (1, 2, 3, 4):
        storage.write_snapshot(tmp_path / f"step_{step}", {}, {})
    for step in (3, 4):
        (tmp_path / f"step_{step}" / storage.MARKER).write_text("{")
    storage.prune_snapshots(tmp_path, keep=1)
    assert [p.name for p in tmp_path.iterdir()] == ["step_2"]


def test_an_optimizer_survives_packing() -> None:
    def trained(packed=None, steps: int = 3):
        torch.manual_seed(0)
        layer = nn.Linear(3, 2)
        optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, betas=(0.9, 0.99))
        for k in range(steps):
            if packed is not None and k == 2:
                optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1, betas=(0.9, 0.99))
                storage.unpack_optimizer(optimizer, packed, "opt")
            optimizer.zero_grad()
            layer(torch.ones(1, 3) * (k + 1)).square().sum().backward()
            optimizer.step()
        return layer, optimizer

    packed = storage.pack_optimizer(trained(steps=2)[1], "opt")
    assert len(packed) == 6 and all(isinstance(t, torch.Tensor) for t in packed.values())
    whole, resumed = trained()[0], trained(packed)[0]
    assert torch.equal(whole.weight, resumed.weight) and torch.equal(whole.bias, resumed.bias)


def test_opening_a_run_writes_the_resolved_recipe(tmp_path: Path) -> None:
    from plaudit.recipe.load import load

    recipe = toy_recipe(tmp_path)
    claim = open_run(recipe, resume=False, overwrite=False)
    assert load([claim.folder.root / "recipe.yaml"]) == recipe


def test_a_run_refused_before_it_measured_anything_does_not_occupy_its_name(tmp_path):
    recipe = load("slots-nft", ["--run.folder", str(tmp_path)])
    claim = open_run(recipe, resume=False, overwrite=False)
    claim.folder.write_json("checks.json", [])
    claim.release()
    open_run(recipe, resume=False, overwrite=False).release()
    (tmp_path / "slots-nft" / "mine.txt").write_text("kept", encoding="utf-8")
    with pytest.raises(RunError, match="exists"):
        open_run(recipe, resume=False, overwrite=False)
    assert (tmp_path / "slots-nft" / "mine.txt").read_text(encoding="utf-8") == "kept"


def test_align_takes_whatever_names_a_recipe(tmp_path: Path) -> None:
    """A run folder too, which goes on where it lies now."""
    recipe = toy_recipe(tmp_path)
    loop.train(recipe.model_dump())
    shutil.move(root_of(tmp_path), tmp_path / "moved")
    with pytest.raises(RunError, match=r"moved exists; go on with --resume"):
        loop.train(tmp_path / "moved")
    assert loop.train(str(tmp_path / "moved"), resume=True).folder == tmp_path / "moved"
    assert not root_of(tmp_path).exists()
    with pytest.raises(RecipeError, match="align: the recipe is 3; give a Recipe"):
        loop.train(3)  # type: ignore[arg-type]

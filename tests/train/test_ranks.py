"""Several processes are one: the same samples, scores and credit to the bit, the same gradients but for the order of a sum."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from tests.train.ranks_worker import KINDS, shared

import plaudit
from plaudit.errors import RunError
from plaudit.ranks import LOST, Ranks, StoppedByMain
from plaudit.train import loop

ROOT = Path(__file__).parents[2]
LAUNCH = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "-m"]
ENVIRONMENT = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": f"{Path(plaudit.__file__).parents[1]}:{ROOT}"}


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes made of every kind of recipe. `long` holds runs of one process, which the two go on with."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("together")
    for name in KINDS:
        loop.train(shared(name, folder / "long" / name, {"train": {"steps": 1}}))
    done = subprocess.run(
        [*LAUNCH, "tests.train.ranks_worker", str(folder)], cwd=ROOT, env=ENVIRONMENT, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def lines(folder: Path, name: str = "metrics.jsonl") -> list[dict]:
    (root,) = (folder / "runs").iterdir()
    return [json.loads(line) for line in (root / name).read_text().splitlines()]


@pytest.mark.parametrize("name", KINDS)
def test_two_processes_are_one(name: str, together: Path, tmp_path: Path) -> None:
    """And a run may be gone on with by more or fewer of them."""
    torch.set_num_threads(1)
    loop.train(shared(name, tmp_path))
    alone, two = lines(tmp_path), lines(together / name)
    summed = [
        key for key in alone[0] if key.startswith(("loss", "ratio", "clip_ratio", "grad_norm", "kl", "approx_kl"))
    ]
    drawn = [
        key for key in alone[0] if key not in summed and key in ("reward", "diversity", "advantage/abs_mean", "step")
    ]
    assert [alone[0][key] for key in drawn] == [two[0][key] for key in drawn]
    for one, other in zip(alone, two, strict=True):
        assert one.keys() == other.keys()
        for key, value in one.items():
            assert other[key] == pytest.approx(value, rel=1e-5, abs=1e-6), key
    first = lines(tmp_path, "evaluations.jsonl")[0], lines(together / name, "evaluations.jsonl")[0]
    assert first[0] == first[1], "the measurement before training, to the bit"

    loop.train(shared(name, together / "short" / name), resume=True)
    for way in ("short", "long"):
        for one, other in zip(two, lines(together / way / name), strict=True):
            assert other == {key: pytest.approx(value, rel=1e-5, abs=1e-6) for key, value in one.items()}, way


def parent_of(stat: Path) -> int | None:
    try:
        return int(stat.read_text().rpartition(")")[2].split()[1])
    except OSError:  # it has ended since it was listed
        return None


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="this system does not list the children of a process")
def test_one_process_starts_the_others_and_a_lost_one_ends_the_run(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "plaudit", "align", "slots-nft", "--plain", "--processes", "2"]
    sizes = {"steps": 200, "minutes": "null", "prompts_per_step": 2, "samples_per_prompt": 4, "micro_batch": 4}
    words = [word for key, value in sizes.items() for word in (f"--train.{key}", str(value))]
    words += [
        "--sampler.tile",
        "4",
        "--evaluate.prompts",
        "4",
        "--evaluate.final_prompts",
        "4",
        "--evaluate.every",
        "1000",
    ]
    run = subprocess.Popen(
        [*command, *words, "--run.folder", str(tmp_path), "--run.threads", "1"],
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert run.stderr is not None and run.stdout is not None
    next(line for line in run.stdout if line.startswith("step 2/"))  # it trains
    children = [int(one.parent.name) for one in Path("/proc").glob("[0-9]*/stat") if parent_of(one) == run.pid]
    assert len(children) == 1
    os.kill(children[0], 9)
    _, said = run.communicate()
    assert (run.returncode, said) == (2, f"error: {LOST}\n")


def test_a_process_that_ends_before_it_is_met_is_not_waited_for(tmp_path: Path) -> None:
    (tmp_path / "sitecustomize.py").write_text('import os\nif os.environ.get("RANK") == "1": os._exit(7)\n')
    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "plaudit",
            "align",
            "slots-nft",
            "--processes",
            "2",
            "--run.folder",
            str(tmp_path / "runs"),
        ],
        env=ENVIRONMENT | {"PYTHONPATH": f"{tmp_path}:{ENVIRONMENT['PYTHONPATH']}"},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert done.returncode == 2
    assert done.stderr == "error: process 1 of this run ended with exit code 7 before the run began\n"
    assert not (tmp_path / "runs").exists()


def test_what_the_first_says_stops_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a process group: what travels is kept in a list."""
    import torch.distributed as dist

    import plaudit.ranks as ranks

    sent: list = []

    def broadcast(told: list, src: int, group: object) -> None:
        sent.append(list(told)) if told != [None, None] else told.__setitem__(slice(None), sent[-1])

    monkeypatch.setattr(dist, "broadcast_object_list", broadcast)
    monkeypatch.setattr(ranks, "_messages", lambda: None)
    main, other = Ranks(index=0, count=2), Ranks(index=1, count=2)
    assert main.from_main(lambda: 3) == 3 and other.from_main(lambda: 1 / 0) == 3
    with pytest.raises(ZeroDivisionError):
        main.from_main(lambda: 1 / 0)
    with pytest.raises(StoppedByMain, match="ZeroDivisionError: division by zero"):
        other.from_main(lambda: 3)


def test_parts_come_back_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    made = list(range(10, 15))
    for index in range(3):
        rounds = iter([[10, 11, 12], [13, 14, None]])
        monkeypatch.setattr(Ranks, "gather", lambda self, value, rounds=rounds: next(rounds))
        own: list[int] = []
        found = list(Ranks(index=index, count=3).share(range(5), lambda part, own=own: own.append(part) or part + 10))
        assert found == made and own == list(range(5))[index::3]


def test_a_number_of_processes_that_is_none_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from plaudit.ranks import asked

    monkeypatch.setenv("WORLD_SIZE", "two")
    with pytest.raises(RunError, match="WORLD_SIZE is 'two'"):
        asked()

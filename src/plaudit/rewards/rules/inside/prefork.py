"""Many small programs in one sandbox: each has a process forked from one that has imported what they need.

The server never reads a program nor an answer, so that nothing of one is in what it forks. Each program has a clerk, a
process that reads it, forks the program's own, and prints the line. A program's process has a pipe to the clerk and no
other descriptor of ours, stands in a domain from where it reaches no other process, may start no process or thread nor
signal one, and is killed before its verdict is printed; what it left on the disk is removed. A program that can find the
pipe can write what it likes there: an answer is what a program says of itself, and only who answered, and when, is ours.
"""

import base64
import json
import math
import os
import resource
import select
import signal
import sys
import time

import linux

OK, RAISED, ENDED, TIMED_OUT, TOO_MUCH = "ok", "raised", "ended", "timed_out", "too_much"
MIB = 1 << 20


class Refused(Exception):
    """The program is not what it should be; the message tells its author."""


def serve(work):
    """Answer the items on stdin, one line of JSON each. `work(item, settings)` makes a head (for JSON) and bytes."""
    if "" in sys.path:
        sys.path.remove("")  # programs can write there
    settings = next_message()
    clean()
    single = not can_refuse_processes()
    print(json.dumps({"ready": True}), flush=True)
    for _ in range(settings["num_items"]):
        pid = os.fork()
        if pid == 0:
            try:
                clerk(work, settings)
                os._exit(0)
            finally:
                os._exit(1)
        if os.waitpid(pid, 0)[1]:
            sys.exit("a clerk has been ended")
        if single or not clean():
            return  # what a program may have left behind must not meet the next: that one starts in a sandbox of its own


def clerk(work, settings):
    verdict, content = attempt(work, next_message(), settings)
    print(json.dumps({"verdict": verdict, "content": base64.b64encode(content).decode()}), flush=True)


def read_exactly(size):
    content = b""
    while len(content) < size:
        part = os.read(0, size - len(content))
        if not part:
            raise EOFError
        content += part
    return content


def next_message():
    return json.loads(read_exactly(int.from_bytes(read_exactly(4), "little")))


def can_refuse_processes():
    """Where the sandbox could not leave root, the limit of processes binds nobody."""
    pid = os.fork()
    if pid == 0:
        code = 1
        try:
            refuse_processes()
            if os.fork() == 0:
                os._exit(0)
        except OSError:
            code = 0
        finally:
            os._exit(code)
    return os.waitpid(pid, 0)[1] == 0


def refuse_processes():
    resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))


def attempt(work, item, settings):
    """The verdict and content of one program."""
    hear, say = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            child(work, item, settings, say)
        finally:
            os._exit(1)
    os.close(say)
    heard, late = listen(hear, 2 * settings["item_s"], settings["most_bytes"])
    os.close(hear)
    os.kill(pid, signal.SIGKILL)
    status = os.waitpid(pid, 0)[1]
    if late or (os.WIFSIGNALED(status) and os.WTERMSIG(status) == signal.SIGXCPU):
        return TIMED_OUT, b""
    if heard is None:
        return TOO_MUCH, b""
    verdict, content = heard[:1], heard[1:]
    if verdict not in (b"O", b"R"):
        how = f"signal {os.WTERMSIG(status)}" if os.WIFSIGNALED(status) else f"exit status {os.WEXITSTATUS(status)}"
        return ENDED, how.encode()
    return (OK if verdict == b"O" else RAISED), content


def listen(number, seconds, most):
    """What came through before the pipe closed, None for more than `most`; and whether it took too long."""
    heard, until = b"", time.monotonic() + seconds
    while select.select([number], [], [], max(until - time.monotonic(), 0))[0]:
        part = os.read(number, 1 << 16)
        if not part:
            return heard, False
        heard += part
        if len(heard) > most:
            return None, False
    return heard, True


def child(work, item, settings, say):
    """Never returns."""
    os.setsid()
    null = os.open(os.devnull, os.O_RDWR)
    for number in range(3):
        os.dup2(null, number)
    os.closerange(3, say)
    os.closerange(say + 1, 1024)
    resource.setrlimit(resource.RLIMIT_AS, (settings["memory_mb"] * MIB, settings["memory_mb"] * MIB))
    seconds = math.ceil(settings["item_s"])
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds + 1))
    signal.signal(signal.SIGXCPU, signal.SIG_DFL)
    refuse_processes()
    linux.stand_apart()
    if settings["filter"]:
        linux.seccomp(base64.b64decode(settings["filter"]))
    try:
        head, body = work(item, settings)
        message = b"O" + json.dumps(head).encode() + b"\n" + body
    except BaseException as error:
        message = b"R" + describe(error).encode(errors="replace")
    view = memoryview(message)
    while view:
        view = view[os.write(say, view) :]
    os._exit(0)


def describe(error):
    try:
        text = str(error)[:300]
    except BaseException:  # the error may be of the program's making
        text = ""
    return text if isinstance(error, Refused) else f"{type(error).__name__}: {text}"


def clean():
    """Remove what lies in the sandbox's writable folders; False where something withstands."""
    home = os.environ["HOME"]
    box = os.path.dirname(home)
    if box != "/box" and not os.path.basename(box).startswith("plaudit-box-"):
        raise RuntimeError(f"{box} is not a sandbox's")
    os.chdir(home)
    return all([empty(f"{box}/{name}") for name in ("work", "tmp", "shm")])


def empty(folder):
    done = not os.path.islink(folder)
    for name in os.listdir(folder) if done else ():
        path = os.path.join(folder, name)
        try:
            if os.path.isdir(path) and not os.path.islink(path):
                done &= empty(path)
                os.rmdir(path)
            else:
                os.unlink(path)
        except (OSError, RecursionError):
            done = False
    return done

"""Judges a program by its tests. Runs as a sandbox's main program; it prints one line of JSON per test.

Four kinds of process. The *judge* forks the others and never reads a test, so that nothing of one is in what it forks. Each
test has a *referee*, which forks the *solution* process before it reads its message, the test and a secret, and
prints its line. The solution process runs the program under test and answers calls; it has neither the judge's output nor
its input. A *test* process runs the test, in which the program's functions are stand-ins that call the solution process.
Only plain values pass between the two, so that a program cannot answer with an object that equals everything, nor end the
test early, nor print a verdict. Verdicts, from the test process to the referee and from there to the caller, carry the
secret, and solution and test stand in domains of their own, from where the kernel lets them reach no other process.
Tests that need the program's own objects can be run `together` with it in one process, where nothing is certain: there, a
program that looks for its judge can find it.

A program may give its functions names of Python's own, and change what is built in: it does so to itself. Tests see such
a name as Python's, except those of `names`, which the tests mean as the program's.
"""

from __future__ import annotations

import builtins
import importlib
import os
import resource
import select
import signal
import sys
import time
from itertools import islice  # by name, what runs beside a program: that may put its own into modules
from json import dumps, loads
from os import write

import linux

TYPE_CHECKING = False  # importing `typing` takes longer than judging
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    Verdict = tuple[str, str]  # and why

MOST_ITEMS = 100_000
LONGEST = 1 << 16
PASS, FAIL, ERROR, TIMEOUT = "pass", "fail", "error", "timeout"
SOLUTION = "solution.py"
# What a test may find imported by the program: importing them does nothing else.
MODULES = frozenset(
    "abc array base64 binascii bisect calendar cmath collections collections.abc contextlib copy csv dataclasses datetime "
    "decimal difflib enum fractions functools hashlib heapq io itertools json math numbers operator os random re statistics "
    "string struct sys textwrap time types typing unicodedata".split()
)
ELSEWHERE = "/"  # nothing in it is the program's to write


class SolutionError(Exception):
    """The program raised something that has no name of ours."""


class Unspeakable(TypeError):
    """A value that cannot pass between processes."""


# --- plain values -----------------------------------------------------------------------------------------------------


def encode(value: Any) -> Any:
    """For JSON: atoms are themselves, everything else a list that begins with its kind."""
    if value is None or isinstance(value, bool | str):
        return value if value is None or isinstance(value, bool) else str(value)
    for kind in (int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, complex):
        return ["complex", value.real, value.imag]
    for kind in (bytes, bytearray):
        if isinstance(value, kind):
            return [kind.__name__, value.hex()]
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return [kind.__name__, *map(encode, value)]
    if isinstance(value, dict):
        return ["dict", *([encode(key), encode(item)] for key, item in value.items())]
    if isinstance(value, range):
        return ["range", value.start, value.stop, value.step]
    if hasattr(value, "__next__") or isinstance(value, type({}.keys()) | type({}.values()) | type({}.items())):
        items = list(islice(value, MOST_ITEMS + 1))
        if len(items) <= MOST_ITEMS:
            return ["iter", *map(encode, items)]
    if hasattr(value, "tolist"):  # arrays
        return encode(value.tolist())
    raise Unspeakable(f"a {type(value).__name__} cannot be handed over; run such tests `together` with the program")


def decode(content: Any) -> Any:
    if not isinstance(content, list):
        return content
    kind, *items = content
    if kind == "complex":
        return complex(*items)
    if kind in ("bytes", "bytearray"):
        return getattr(builtins, kind).fromhex(items[0])
    if kind == "range":
        return range(*items)
    if kind == "dict":
        return {decode(key): decode(item) for key, item in items}
    return {"list": list, "tuple": tuple, "set": set, "frozenset": frozenset, "iter": iter}[kind](map(decode, items))


class Line:
    """Two pipes that carry one JSON text per line."""

    def __init__(self, incoming: int, outgoing: int) -> None:
        self.incoming, self.outgoing = os.fdopen(incoming, "rb"), outgoing

    def send(self, content: Any) -> None:
        view = memoryview(dumps(content).encode() + b"\n")
        while view:
            view = view[write(self.outgoing, view) :]

    def receive(self) -> Any:
        text = self.incoming.readline()
        if not text.endswith(b"\n"):
            raise SolutionError("the program has ended")
        return loads(text)


# --- the solution process ---------------------------------------------------------------------------------------------


def solution(line: Line, source: str, memory_mb: int) -> None:
    """Answer calls until the other side has enough."""
    limit_memory(memory_mb)
    sys.path.insert(0, "")
    space = own_space()
    try:
        exec(compile(source, SOLUTION, "exec"), space)
    except BaseException as error:
        line.send({"raised": type(error).__name__, "message": str(error)[:500]})
        return
    line.send({"names": dict(filter(None, map(describe, list(space.items()))))})
    while True:
        name, arguments, named = line.receive()
        line.send(answer(space[name], decode(arguments), decode(named)))


def own_space() -> dict[str, Any]:
    """A module's, with a copy of what is built in, so that what the program changes there is not changed for us."""
    own = type(sys)("builtins")
    vars(own).update(vars(builtins))
    module = type(sys)("solution")
    sys.modules["builtins"], sys.modules["solution"] = own, module
    vars(module)["__builtins__"] = vars(own)
    return vars(module)


def describe(item: tuple[Any, Any]) -> tuple[str, dict[str, Any]] | None:
    name, value = item
    try:
        if not isinstance(name, str) or name.startswith("__"):
            return None
        if hasattr(value, "__next__"):  # encoding would use up what the program goes through
            return None
        if isinstance(value, type(sys)):
            return name, {"module": value.__name__}
        if callable(value):
            return name, {"function": True}
        return name, {"value": encode(value)}
    except Exception:  # no test can use it
        return None


def answer(function: Callable[..., Any], arguments: list[Any], named: dict[str, Any]) -> dict[str, Any]:
    try:
        value = encode(function(*arguments, **named))
        return {"value": value, "arguments": encode(arguments)}
    except BaseException as error:
        return {"raised": type(error).__name__, "message": str(error)[:500]}


# --- the test process -------------------------------------------------------------------------------------------------


def judge_apart(line: Line, test: str, settings: dict[str, Any]) -> Verdict:
    step_outside()
    found = line.receive()
    if "raised" in found:
        return ERROR, f"{found['raised']}: {found['message']}"
    space = {"__name__": "__test__"}
    for name, what in found["names"].items():
        if not name.startswith("__") and (name in settings["names"] or not hasattr(builtins, name)):
            add_name(space, line, name, what)
    return execute(test, space, settings["entry_point"])


def step_outside() -> None:
    """Out of the program's folder, which is its home too: no code, settings or caches are to be found there."""
    os.chdir(ELSEWHERE)
    os.environ.update(dict.fromkeys(("HOME", "XDG_CACHE_HOME", "MPLCONFIGDIR"), ELSEWHERE))


def add_name(space: dict[str, Any], line: Line, name: str, what: dict[str, Any]) -> None:
    if "value" in what:
        space[name] = decode(what["value"])
    elif "module" in what:
        if what["module"] in MODULES:
            space[name] = importlib.import_module(what["module"])
    else:
        space[name] = stand_in(line, name)


def stand_in(line: Line, name: str) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        line.send([name, encode(list(arguments)), encode(named)])
        reply = line.receive()
        if "raised" in reply:
            raise exception(str(reply["raised"]), str(reply["message"]))
        for ours, theirs in zip(arguments, decode(reply["arguments"]), strict=False):
            update(ours, theirs)
        return decode(reply["value"])

    call.__name__ = name
    return call


def update(ours: Any, theirs: Any) -> None:
    """A program may change the lists and mappings it is given."""
    if isinstance(ours, list) and isinstance(theirs, list):
        ours[:] = theirs
    elif isinstance(ours, dict | set) and isinstance(theirs, type(ours)):
        ours.clear()
        ours.update(theirs)


def exception(name: str, message: str) -> Exception:
    if name in ("StopIteration", "StopAsyncIteration"):  # they would end the loop of a test without a word (PEP 479)
        return RuntimeError(f"the program raised {name}")
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            return kind(message)
        except TypeError:  # some take more than a message
            pass
    return SolutionError(f"{name}: {message}")


def judge_together(source: str, test: str, entry_point: str | None) -> Verdict:
    """As a script of both would run."""
    space = own_space()
    exec(compile(source, SOLUTION, "exec"), space)
    return execute(test, space, entry_point)


def execute(test: str, space: dict[str, Any], entry_point: str | None) -> Verdict:
    if entry_point is not None:
        if entry_point not in space:
            return ERROR, f"the program does not define {entry_point}"
        space["candidate"] = space[entry_point]
    try:
        exec(compile(test, "test.py", "exec"), space)
    except AssertionError as error:
        return FAIL, f"AssertionError: {error}"[:500]
    return PASS, ""


# --- the judge --------------------------------------------------------------------------------------------------------


def fork(work: Callable[[], None], kept: list[int]) -> int:
    """A child that does this work with these pipes and nothing else of ours, in a group and a domain of its own."""
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for number in range(3):
            os.dup2(null, number)
        kept = sorted(kept)
        for low, high in zip([2, *kept], [*kept, 1024], strict=True):
            os.closerange(low + 1, high)
        linux.stand_apart()
        work()
    except BaseException:  # its silence tells
        pass
    finally:
        os._exit(0)


def referee(source: str, settings: dict[str, Any], within_s: float) -> None:
    """One test: the solution starts before anything of the test is read."""
    ask_out, ask_in = os.pipe()
    tell_out, tell_in = os.pipe()
    verdict_out, verdict_in = os.pipe()
    apart, children = settings["apart"], []
    if apart:
        children.append(
            fork(lambda: solution(Line(ask_out, tell_in), source, settings["memory_mb"]), [ask_out, tell_in])
        )
    secret, test = next_message()

    def work() -> None:
        try:
            limit_memory(settings["memory_mb"])
            if apart:
                verdict = judge_apart(Line(tell_out, ask_in), test, settings)
            else:
                verdict = judge_together(source, test, settings["entry_point"])
        except BaseException as error:
            verdict = ERROR, f"{type(error).__name__}: {error}"[:500]
        write(verdict_in, dumps([secret, *verdict]).encode())

    children.append(fork(work, [tell_out, ask_in, verdict_in]))
    for number in (ask_out, ask_in, tell_out, tell_in, verdict_in):
        os.close(number)
    verdict = hear(verdict_out, within_s, secret)
    for pid in children:
        end(pid)
    print(dumps([secret, *verdict]), flush=True)


def limit_memory(megabytes: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (megabytes << 20, megabytes << 20))


def hear(verdict_out: int, within_s: float, secret: str) -> Verdict:
    """Together with the program, anything may come through this pipe."""
    heard, until = b"", time.monotonic() + within_s
    while len(heard) < LONGEST and select.select([verdict_out], [], [], max(until - time.monotonic(), 0))[0]:
        part = os.read(verdict_out, 4096)
        if not part:
            return read_verdict(heard, secret)
        heard += part
    return (TIMEOUT, f"no verdict within {within_s:g} s") if len(heard) < LONGEST else (ERROR, "an endless verdict")


def read_verdict(heard: bytes, secret: str) -> Verdict:
    try:
        known, verdict, note = loads(heard)
    except (ValueError, TypeError, RecursionError):
        return ERROR, "the interpreter was ended"
    if known != secret or verdict not in (PASS, FAIL, ERROR):
        return ERROR, "no verdict"
    return verdict, str(note).encode(errors="replace").decode()  # the program's words, and halves of characters in them


def end(pid: int) -> None:
    for kill in (os.killpg, os.kill):
        try:
            kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
    os.waitpid(pid, 0)


def read_exactly(size: int) -> bytes:
    content = b""
    while len(content) < size:
        part = os.read(0, size - len(content))
        if not part:
            raise EOFError
        content += part
    return content


def next_message() -> Any:
    """Straight from the file, so that nothing of the next test is in memory before it is asked for."""
    return loads(read_exactly(int.from_bytes(read_exactly(4), "little")))


def main() -> None:
    """Ends by itself, whatever the program does; a referee that does not ends the run, in which then nothing is believed."""
    sys.set_int_max_str_digits(0)
    sys.path.remove("")  # the program can write there; tests import from what it cannot
    settings = next_message()
    with open(SOLUTION, encoding="utf-8", errors="surrogatepass") as file:
        source = file.read()
    for name in (SOLUTION, "linux.py"):  # the folder is the program's
        os.remove(name)
    until = time.monotonic() + settings["total_s"]
    for _ in range(settings["num_tests"]):
        within_s = max(min(settings["test_s"], until - time.monotonic()), 0)
        pid = os.fork()
        if pid == 0:
            try:
                referee(source, settings, within_s)
                os._exit(0)
            finally:
                os._exit(1)
        if os.waitpid(pid, 0)[1]:
            sys.exit("a referee has been ended")


if __name__ == "__main__":
    main()

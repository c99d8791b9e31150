"""The processes that descend from one, wherever they reparented to below it: their memory, and their end."""

from __future__ import annotations

import os
import time

PAGE = os.sysconf("SC_PAGE_SIZE")
SIGKILL = 9
DEEPEST = 64


def _read(path: str) -> bytes:
    try:
        with open(path, "rb") as file:
            return file.read()
    except OSError:
        return b""


# What a socket may hold that is asked for no more; the number is Linux's own, where the machine does not tell.
SOCKET = int(_read("/proc/sys/net/core/wmem_default") or 212_992)


def descendants(pid: int) -> list[int]:
    found, queue = [], [pid]
    while queue:
        for child in _children(queue.pop()):
            found.append(child)
            queue.append(child)
    return found


def _children(pid: int) -> list[int]:
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:  # it has ended
        return []
    return [int(child) for thread in threads for child in _read(f"/proc/{pid}/task/{thread}/children").split()]


def threads(pids: list[int]) -> int:
    return sum(_links(f"/proc/{pid}/task") for pid in pids)


def _links(path: str) -> int:
    try:
        return os.stat(path).st_nlink - 2
    except OSError:
        return 0


def memory(pids: list[int], limit: int) -> int:
    """Bytes in use. Pages shared by forks are counted once, but only when it matters, as telling them apart is slow."""
    total = sum(_resident(pid) for pid in pids)
    return total if total <= limit else sum(_proportional(pid) for pid in pids)


def _resident(pid: int) -> int:
    fields = _read(f"/proc/{pid}/statm").split()
    return int(fields[1]) * PAGE if fields else 0


def _proportional(pid: int) -> int:
    for line in _read(f"/proc/{pid}/smaps_rollup").splitlines():
        if line.startswith(b"Pss:"):
            return int(line.split()[1]) * 1024
    return _resident(pid)  # a process may hide its map, which then counts in full


def held(pids: list[int], box: str | None, largest: int) -> tuple[int, int]:
    """Bytes in the buffers of sockets, as if they were full, and in files of the box that are in use but have no name any
    more; one that is only mapped does not tell its size, and counts as the largest there may be."""
    sockets, hidden, unlinked = set(), 0, {}
    for pid in pids:
        for number in _descriptors(pid):
            path = f"/proc/{pid}/fd/{number}"
            try:
                target = os.readlink(path)
                if target.startswith("socket:"):
                    sockets.add(target)
                elif box is not None and target.startswith(box) and (facts := os.stat(path)).st_nlink == 0:
                    unlinked[facts.st_ino] = facts.st_blocks * 512
            except PermissionError:  # what is hidden counts as a socket
                hidden += 1
            except OSError:  # closed meanwhile
                continue
    for pid in pids if box is not None else ():
        for line in _read(f"/proc/{pid}/maps").splitlines():
            if line.endswith(b" (deleted)") and box.encode() in line:
                unlinked.setdefault(int(line.split()[4]), largest)
    return (len(sockets) + hidden) * SOCKET, sum(unlinked.values())


def _descriptors(pid: int) -> list[str]:
    folder = f"/proc/{pid}/fd"
    try:
        try:
            return os.listdir(folder)
        except PermissionError:
            return ["hidden"] * os.stat(folder).st_size
    except OSError:  # it has ended
        return []


def files(folder: str) -> int:
    """How many the file system of this folder has; 0 where it is not there yet."""
    try:
        facts = os.statvfs(folder)
    except OSError:
        return 0
    return facts.f_files - facts.f_ffree


def disk(folder: str, limit: int) -> int:
    """Bytes below a folder, each entry counting as a block. More than `limit`, also for a nesting that serves nothing
    but to make us slow."""
    total, queue = 0, [(folder, 0)]
    while queue and total <= limit:
        path, depth = queue.pop()
        if depth > DEEPEST:
            return limit + 1
        try:
            with os.scandir(path) as entries:
                for entry in entries:
                    total += max(entry.stat(follow_symlinks=False).st_blocks * 512, 4096)
                    if entry.is_dir(follow_symlinks=False):
                        queue.append((entry.path, depth + 1))
                    if total > limit:
                        break
        except OSError:  # removed while we look
            continue
    return total


def kill(pid: int, deadline_s: float = 1.0) -> bool:
    """End everything below `pid`, which must adopt orphans; again until nothing is left, as they may fork meanwhile."""
    until = time.monotonic() + deadline_s
    while (pids := descendants(pid)) and time.monotonic() < until:
        for each in pids:
            try:
                os.kill(each, SIGKILL)
            except OSError:
                continue
        if pid == os.getpid():
            reap()
        os.sched_yield()
    return not pids


def end_all(user: int | None = None) -> bool:
    """End everyone whom this process can signal but itself, or everyone of a user, and collect them. Whether any is left."""
    if user is None or os.fork() == 0:
        try:
            if user is not None:
                os.setresuid(user, user, user)
            os.kill(-1, SIGKILL)
        except ProcessLookupError:  # nothing was left
            pass
        finally:
            if user is not None:
                os._exit(0)
    try:
        while True:
            os.waitpid(-1, 0)
    except ChildProcessError:
        return False


def reap() -> None:
    """Collect ended children without waiting."""
    try:
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    except ChildProcessError:
        return

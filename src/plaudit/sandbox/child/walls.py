"""Building the walls: the private file system, the limits and the permissions of the program that is about to run."""

from __future__ import annotations

import os
import resource

import linux

DEVICES = ("/dev/null", "/dev/full", "/dev/random", "/dev/urandom")  # not zero, whose shared mappings nothing counts
FOLDERS = ("work", "tmp", "shm")
MIB = 1 << 20
NOBODY = 65534
UNUSED_UIDS = 1_900_000_000  # above what distributions, containers and directories hand out
INSIDE = 1000
ROOM = 1024 * MIB  # for mappings that are never touched
UNLIMITED = resource.RLIM_INFINITY


def choose_user(needed: list[str], has_own_files: bool) -> int | None:
    """An ordinary user for a sandbox started by root, one that nobody else is; None for staying who we are."""
    if os.geteuid() != 0:
        return None
    with open("/proc/self/uid_map") as file:
        covers_all = file.read().split() == ["0", "0", "4294967295"]
    user = UNUSED_UIDS + os.getpid() if covers_all else NOBODY
    if has_own_files:
        return user
    try:  # where the file system is shared, only if that user can reach the interpreter and its packages
        os.seteuid(user)
    except OSError:
        return None
    try:
        reached = all(os.access(path, os.R_OK | os.X_OK, effective_ids=True) for path in needed)
        return user if reached else None
    finally:
        os.seteuid(0)


def enter_namespaces() -> bool:
    """New ones of every kind but mount, which the first process inside makes. True when the kernel let us as root."""
    flags = linux.CLONE_NEWPID | linux.CLONE_NEWIPC | linux.CLONE_NEWUTS | linux.CLONE_NEWNET | linux.CLONE_NEWCGROUP
    if os.geteuid() == 0:
        try:
            linux.unshare(flags)
            return True
        except OSError:  # root of a container; go on as any user
            pass
    user, group = os.geteuid(), os.getegid()
    linux.unshare(flags | linux.CLONE_NEWUSER)
    for name, content in (
        ("setgroups", "deny"),
        ("uid_map", f"{INSIDE} {user} 1"),
        ("gid_map", f"{INSIDE} {group} 1"),
    ):
        with open(f"/proc/self/{name}", "w") as file:
            file.write(content)
    return False


def private_file_system(
    box: str,
    readable: list[tuple[str, str]],
    hidden: list[str],
    links: list[tuple[str, str]],
    limits: dict[str, int],
) -> None:
    """A new root with the readable trees but for what is hidden in them, a few devices and the box; the machine's own is gone."""
    linux.unshare(linux.CLONE_NEWNS)
    linux.mount(None, "/", None, linux.MS_REC | linux.MS_PRIVATE)
    plain = linux.MS_NOSUID | linux.MS_NODEV
    linux.mount("tmpfs", "/tmp", "tmpfs", plain, "size=4m,nr_inodes=4096,mode=755")
    os.mkdir("/tmp/old")
    linux.pivot_root("/tmp", "/tmp/old")
    os.chdir("/")
    for path, place in readable:
        _bind(path, place)
        linux.read_only(place, recursive=True)
    for place in hidden:
        linux.mount("tmpfs", place, "tmpfs", plain, "size=4k,nr_inodes=1,mode=555")
        linux.read_only(place, recursive=False)
    for path in DEVICES:
        _bind(path, path)
        linux.read_only(path, recursive=False)
    for path, target in links:
        os.makedirs(os.path.dirname(path), exist_ok=True)
        os.symlink(target, path)
    os.mkdir(box)
    space = f"size={limits['disk_mb']}m,nr_inodes={most_files(limits)},mode=755"
    linux.mount("tmpfs", box, "tmpfs", plain, space)
    for path, target in (("/tmp", f"{box}/tmp"), ("/dev/shm", f"{box}/shm")):
        os.symlink(target, path)
    linux.detach("/old")
    os.rmdir("/old")
    linux.read_only("/", recursive=False)


def most_files(limits: dict[str, int]) -> int:
    return 1024 + 64 * limits["disk_mb"]


def _bind(path: str, place: str) -> None:
    if os.path.isdir(f"/old{path}"):
        os.makedirs(place, exist_ok=True)
    else:
        os.makedirs(os.path.dirname(place), exist_ok=True)
        os.close(os.open(place, os.O_CREAT | os.O_WRONLY, 0o600))
    linux.mount(f"/old{path}", place, None, linux.MS_BIND | linux.MS_REC)


def fill_box(box: str, files: list[tuple[str, bytes]], user: int | None) -> None:
    """The program's directories and files, which belong to the user that it runs as."""

    def give(path: str) -> None:
        if user is not None:
            os.chown(path, user, user)

    for name in FOLDERS:
        os.mkdir(f"{box}/{name}", 0o700)
        give(f"{box}/{name}")
    for name, content in files:
        path = f"{box}/work"
        for part in name.split("/")[:-1]:
            path += f"/{part}"
            if not os.path.isdir(path):
                os.mkdir(path, 0o700)
                give(path)
        with open(f"{box}/work/{name}", "xb") as file:
            file.write(content)
        give(f"{box}/work/{name}")


def limit_resources(limits: dict[str, int], count_others: bool) -> None:
    """`count_others`: where the limit of processes is the user's and not the sandbox's, it comes on top of the others."""
    limit("RLIMIT_CPU", limits["cpu_s"])
    limit("RLIMIT_AS", limits["memory_mb"] * MIB + ROOM)
    limit("RLIMIT_FSIZE", limits["file_mb"] * MIB)
    limit("RLIMIT_NOFILE", limits["open_files"])
    limit("RLIMIT_NPROC", limits["processes"] + (_threads_of_user() if count_others else 0))
    limit("RLIMIT_CORE", 1)  # one byte, unlike none, also means none where cores go through a pipe
    for name in ("RLIMIT_MEMLOCK", "RLIMIT_MSGQUEUE", "RLIMIT_RTPRIO", "RLIMIT_NICE"):
        limit(name, 0)


def limit(name: str, value: int) -> None:
    number = getattr(resource, name, None)
    if number is None:
        return
    hard = resource.getrlimit(number)[1]
    value = value if hard == UNLIMITED else min(value, hard)
    resource.setrlimit(number, (value, value))


def _threads_of_user() -> int:
    user, count = os.geteuid(), 0
    for name in os.listdir("/proc"):
        try:
            if name.isdigit() and os.stat(f"/proc/{name}").st_uid == user:
                count += len(os.listdir(f"/proc/{name}/task"))
        except OSError:  # it has ended
            continue
    return count


def become(user: int | None) -> None:
    """Give up every right that the program could use."""
    if user is not None:
        os.setgroups([])
        os.setresgid(user, user, user)
        os.setresuid(user, user, user)
    linux.drop_capabilities()
    linux.prctl(linux.PR_SET_NO_NEW_PRIVS, 1)

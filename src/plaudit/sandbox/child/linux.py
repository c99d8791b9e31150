"""System calls that Python 3.11 does not offer. Runs under `python -I -S`: imports are paid for at every start."""

from __future__ import annotations

import ctypes
import os

libc = ctypes.CDLL(None, use_errno=True)
libc.syscall.restype = ctypes.c_long

CLONE_NEWNS, CLONE_NEWCGROUP, CLONE_NEWUTS, CLONE_NEWIPC = 0x00020000, 0x02000000, 0x04000000, 0x08000000
CLONE_NEWUSER, CLONE_NEWPID, CLONE_NEWNET = 0x10000000, 0x20000000, 0x40000000
MS_NOSUID, MS_NODEV, MS_BIND, MS_REC, MS_PRIVATE = 2, 4, 4096, 16384, 1 << 18
MNT_DETACH = 2
PR_SET_PDEATHSIG, PR_CAPBSET_DROP, PR_SET_SECUREBITS = 1, 24, 28
PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP = 36, 38, 22
SECCOMP_MODE_FILTER = 2
SECBITS_NO_ROOT = 0b1111  # being user 0 gives no capabilities, and this cannot be taken back
ATTR_RDONLY, ATTR_NOSUID, ATTR_NODEV = 1, 2, 4
AT_FDCWD, AT_RECURSIVE = -100, 0x8000
# the same number on every architecture that has them
SYS_MOUNT_SETATTR, SYS_CREATE_RULESET, SYS_ADD_RULE, SYS_RESTRICT_SELF = 442, 444, 445, 446
SYS_PIVOT_ROOT = {"x86_64": 155, "aarch64": 41}
SYS_CAPSET = {"x86_64": 126, "aarch64": 91}


def check(result: int, what: str) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")
    return result


def syscall(number: int, *arguments: object) -> int:
    return libc.syscall(ctypes.c_long(number), *arguments)


def prctl(option: int, value: int) -> None:
    check(_prctl(option, value), f"prctl {option}")


def _prctl(option: int, first: int, second: int = 0) -> int:
    return libc.prctl(option, *(ctypes.c_ulong(value) for value in (first, second, 0, 0)))


def unshare(flags: int) -> None:
    check(libc.unshare(flags), "unshare")


def mount(source: str | None, target: str, kind: str | None, flags: int, data: str | None = None) -> None:
    encoded = [None if part is None else part.encode() for part in (source, target, kind, data)]
    result = libc.mount(*encoded[:3], ctypes.c_ulong(flags), encoded[3])
    check(result, f"mount {source} at {target}")


def read_only(path: str, recursive: bool) -> None:
    """Never writable again, nor a way to devices and set-uid programs; with all that is mounted below."""
    attributes = (ctypes.c_uint64 * 4)(ATTR_RDONLY | ATTR_NOSUID | (ATTR_NODEV if recursive else 0), 0, 0, 0)
    flags = AT_RECURSIVE if recursive else 0
    result = syscall(SYS_MOUNT_SETATTR, AT_FDCWD, path.encode(), flags, ctypes.byref(attributes), ctypes.c_size_t(32))
    check(result, f"mount_setattr {path}")


def pivot_root(new: str, old: str) -> None:
    check(syscall(SYS_PIVOT_ROOT[os.uname().machine], new.encode(), old.encode()), "pivot_root")


def detach(path: str) -> None:
    check(libc.umount2(path.encode(), MNT_DETACH), f"umount {path}")


def drop_capabilities() -> None:
    """For user 0, who would otherwise have them back after exec."""
    try:
        prctl(PR_SET_SECUREBITS, SECBITS_NO_ROOT)
        for capability in range(64):
            if _prctl(PR_CAPBSET_DROP, capability) < 0:
                break
    except PermissionError:  # there are no capabilities to drop
        pass
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)
    nothing = (ctypes.c_uint32 * 6)()
    check(syscall(SYS_CAPSET[os.uname().machine], ctypes.byref(header), ctypes.byref(nothing)), "capset")


# --- Landlock: rights by their kernel bit, in the order in which versions of its interface brought them ---------------

EXECUTE, WRITE_FILE, READ_FILE, READ_DIR = 1, 2, 4, 8
TRUNCATE, IOCTL_DEV = 1 << 14, 1 << 15
RIGHTS_OF_VERSION = {1: (1 << 13) - 1, 2: (1 << 14) - 1, 3: (1 << 15) - 1, 4: (1 << 15) - 1, 5: (1 << 16) - 1}
READ = EXECUTE | READ_FILE | READ_DIR
FILE_RIGHTS = EXECUTE | WRITE_FILE | READ_FILE | TRUNCATE | IOCTL_DEV
MAKE_DEVICES = 1 << 6 | 1 << 11  # character and block devices
REFER = 1 << 13  # renames from folder to folder, which every ruleset forbids unless it allows them
TCP_BIND_CONNECT = 3
use_landlock_up_to = 99
SCOPES = 6  # the first version that keeps signals inside
SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS = 3


def landlock_version() -> int:
    """0 where the kernel has none."""
    return min(max(syscall(SYS_CREATE_RULESET, None, ctypes.c_size_t(0), 1), 0), use_landlock_up_to)


def landlock(readable: list[str], hidden: list[str], writable: list[str], devices: tuple[str, ...]) -> None:
    """Only these trees may be opened from now on, but for what is hidden in them; on newer kernels also no TCP, and no signals
    to the outside."""
    handled = RIGHTS_OF_VERSION[min(landlock_version(), 5)]
    _restrict(
        handled,
        TCP_BIND_CONNECT,
        [
            *(rule for path in readable for rule in _around(path, hidden)),
            *((path, handled & ~MAKE_DEVICES) for path in writable),
            *((path, READ_FILE | WRITE_FILE) for path in devices),
        ],
    )


def _around(path: str, hidden: list[str]) -> list[tuple[str, int]]:
    """Rules for a tree without the hidden folders in it, whose names can still be listed."""
    if path in hidden:
        return []
    if not any(folder.startswith(f"{path}/") for folder in hidden):
        return [(path, READ)]
    parts = [rule for name in os.listdir(path) for rule in _around(f"{path}/{name}", hidden)]
    return [(path, READ_DIR), *parts]


def stand_apart() -> None:
    """In a domain of its own, this process and what it starts reach none of those that it came from: not through /proc
    (where there is one), not by ptrace and, on newer kernels, not by signals. Those outside still reach it."""
    if landlock_version() >= 3:
        _restrict(MAKE_DEVICES | REFER, 0, [("/", REFER)])


def keep_signals() -> bool:
    """This process and what it starts can signal none but themselves; False where the kernel cannot see to it."""
    if landlock_version() < SCOPES:
        return False
    _restrict(0, 0, [])
    return True


def _restrict(files: int, network: int, rules: list[tuple[str, int]]) -> None:
    """A Landlock domain more. Signals to the outside are refused in all of them, where the kernel can."""
    version = landlock_version()
    words = [files, network if version >= 4 else 0, SCOPE_ABSTRACT_SOCKETS_AND_SIGNALS if version >= SCOPES else 0]
    size = 24 if version >= SCOPES else 16 if version >= 4 else 8
    attributes = (ctypes.c_uint64 * 3)(*words)
    ruleset = check(syscall(SYS_CREATE_RULESET, ctypes.byref(attributes), ctypes.c_size_t(size), 0), "landlock ruleset")
    for path, rights in rules:
        _allow(ruleset, path, files & rights)
    check(syscall(SYS_RESTRICT_SELF, ruleset, 0), "landlock")
    os.close(ruleset)


def _allow(ruleset: int, path: str, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:  # what is not there needs no permission
        return
    if os.stat(descriptor).st_mode & 0o170000 != 0o040000:
        rights &= FILE_RIGHTS
    rule = rights.to_bytes(8, "little") + descriptor.to_bytes(4, "little", signed=True)
    check(syscall(SYS_ADD_RULE, ruleset, 1, rule, 0), f"landlock rule for {path}")
    os.close(descriptor)


def seccomp(program: bytes) -> None:
    """Call last: what the filter refuses is refused from here on."""
    buffer = ctypes.create_string_buffer(program, len(program))

    class Program(ctypes.Structure):
        _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p)]

    described = Program(len(program) // 8, ctypes.addressof(buffer))
    check(_prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, ctypes.addressof(described)), "seccomp")

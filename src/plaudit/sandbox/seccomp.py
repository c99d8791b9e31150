"""The system call filter of sandboxed programs, as the BPF program the kernel takes.

It refuses what no judged program needs and what could reach past the other walls: sockets, other processes' memory,
mounts, new namespaces, kernel interfaces with a history of holes, what System V shares by number with every process of the
machine, locks on and news of files that others use, and memory that no limit counts: in files without a name (memfd,
anonymous mappings that are shared), in larger buffers of sockets, in what is sent through them but data (open files).
"""

from __future__ import annotations

import ctypes
import errno
import platform
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache

# fmt: off
X86_64 = {
    "accept": 43, "accept4": 288, "acct": 163, "add_key": 248, "adjtimex": 159, "bind": 49, "bpf": 321, "chmod": 90,
    "chown": 92, "chroot": 161, "clock_adjtime": 305, "clock_settime": 227, "clone": 56, "connect": 42,
    "delete_module": 176, "fanotify_init": 300, "fchmod": 91, "fchmodat": 268, "fchown": 93, "fchownat": 260,
    "fcntl": 72, "finit_module": 313, "fremovexattr": 199, "fsetxattr": 190, "futimesat": 261, "init_module": 175,
    "ioctl": 16, "ioperm": 173, "iopl": 172, "ioprio_set": 251, "kcmp": 312, "kexec_file_load": 320, "kexec_load": 246,
    "keyctl": 250, "kill": 62, "lchown": 94, "listen": 50, "lookup_dcookie": 212, "lremovexattr": 198, "lsetxattr": 189,
    "memfd_create": 319, "migrate_pages": 256, "modify_ldt": 154, "mount": 165, "move_pages": 279, "mq_open": 240,
    "mq_unlink": 241, "msgctl": 71, "msgget": 68, "msgrcv": 70, "msgsnd": 69, "name_to_handle_at": 303,
    "open_by_handle_at": 304, "perf_event_open": 298, "pivot_root": 155, "prlimit64": 302, "process_vm_readv": 310,
    "process_vm_writev": 311, "ptrace": 101, "quotactl": 179, "reboot": 169, "removexattr": 197, "request_key": 249,
    "rt_sigqueueinfo": 129, "rt_tgsigqueueinfo": 297, "sched_setaffinity": 203, "sched_setattr": 314,
    "sched_setparam": 142, "sched_setscheduler": 144, "semctl": 66, "semget": 64, "semop": 65, "semtimedop": 220,
    "setdomainname": 171, "sethostname": 170, "setns": 308, "setpriority": 141, "settimeofday": 164, "setxattr": 188,
    "shmat": 30, "shmctl": 31, "shmdt": 67, "shmget": 29, "socket": 41, "socketpair": 53, "swapoff": 168, "swapon": 167,
    "syslog": 103, "tgkill": 234, "tkill": 200, "umount2": 166, "unshare": 272, "uselib": 134, "userfaultfd": 323,
    "utime": 132, "utimensat": 280, "utimes": 235, "vhangup": 153, "flock": 73, "inotify_init": 253, "inotify_init1": 294,
    "io_setup": 206, "mmap": 9, "prctl": 157, "sendmmsg": 307, "sendmsg": 46, "setsockopt": 54, "vmsplice": 278,
}
AARCH64 = {
    "accept": 202, "accept4": 242, "acct": 89, "add_key": 217, "adjtimex": 171, "bind": 200, "bpf": 280, "chroot": 51,
    "clock_adjtime": 266, "clock_settime": 112, "clone": 220, "connect": 203, "delete_module": 106,
    "fanotify_init": 262, "fchmod": 52, "fchmodat": 53, "fchown": 55, "fchownat": 54, "fcntl": 25, "finit_module": 273,
    "fremovexattr": 16, "fsetxattr": 7, "init_module": 105, "ioctl": 29, "ioprio_set": 30, "kcmp": 272,
    "kexec_file_load": 294, "kexec_load": 104, "keyctl": 219, "kill": 129, "listen": 201, "lookup_dcookie": 18,
    "lremovexattr": 15, "lsetxattr": 6, "memfd_create": 279, "migrate_pages": 238, "mount": 40, "move_pages": 239,
    "mq_open": 180, "mq_unlink": 181, "msgctl": 187, "msgget": 186, "msgrcv": 188, "msgsnd": 189,
    "name_to_handle_at": 264, "open_by_handle_at": 265, "perf_event_open": 241, "pivot_root": 41, "prlimit64": 261,
    "process_vm_readv": 270, "process_vm_writev": 271, "ptrace": 117, "quotactl": 60, "reboot": 142, "removexattr": 14,
    "request_key": 218, "rt_sigqueueinfo": 138, "rt_tgsigqueueinfo": 240, "sched_setaffinity": 122,
    "sched_setattr": 274, "sched_setparam": 118, "sched_setscheduler": 119, "semctl": 191, "semget": 190, "semop": 193,
    "semtimedop": 192, "setdomainname": 162, "sethostname": 161, "setns": 268, "setpriority": 140, "settimeofday": 170,
    "setxattr": 5, "shmat": 196, "shmctl": 195, "shmdt": 197, "shmget": 194, "socket": 198, "socketpair": 199,
    "swapoff": 225, "swapon": 224, "syslog": 116, "tgkill": 131, "tkill": 130, "umount2": 39, "unshare": 97,
    "userfaultfd": 282, "utimensat": 88, "vhangup": 58, "flock": 32, "inotify_init1": 26, "io_setup": 0, "mmap": 222,
    "prctl": 167, "sendmmsg": 269, "sendmsg": 211, "setsockopt": 208, "vmsplice": 75,
}
# fmt: on
COMMON = {  # the numbers that all architectures share
    "clone3": 435,
    "fchmodat2": 452,
    "fsconfig": 431,
    "fsmount": 432,
    "fsopen": 430,
    "fspick": 433,
    "io_uring_enter": 426,
    "io_uring_register": 427,
    "io_uring_setup": 425,
    "memfd_secret": 447,
    "mount_setattr": 442,
    "move_mount": 429,
    "open_tree": 428,
    "open_tree_attr": 467,
    "pidfd_getfd": 438,
    "pidfd_send_signal": 424,
    "process_madvise": 440,
    "process_mrelease": 448,
    "quotactl_fd": 443,
    "removexattrat": 466,
    "setxattrat": 463,
}

REFUSED = """
    accept accept4 acct add_key adjtimex bind bpf chroot clock_adjtime clock_settime connect delete_module
    fanotify_init finit_module flock fsconfig fsmount fsopen fspick init_module inotify_init inotify_init1 io_setup
    io_uring_enter io_uring_register io_uring_setup ioperm iopl kcmp kexec_file_load kexec_load keyctl listen
    lookup_dcookie memfd_create memfd_secret migrate_pages modify_ldt mount mount_setattr move_mount move_pages
    mq_open mq_unlink msgctl msgget msgrcv msgsnd name_to_handle_at open_by_handle_at open_tree open_tree_attr
    perf_event_open pidfd_getfd pivot_root process_madvise process_mrelease process_vm_readv process_vm_writev ptrace
    quotactl quotactl_fd reboot request_key semctl semget semop semtimedop sendmmsg sendmsg setdomainname sethostname
    setns setsockopt settimeofday shmat shmctl shmdt shmget socket swapoff swapon syslog umount2 unshare uselib
    userfaultfd vhangup vmsplice
""".split()
# Landlock guards the contents of files, not these; where the file system is shared they must not be called at all.
ATTRIBUTES = """
    chmod chown fchmod fchmodat fchmodat2 fchown fchownat fremovexattr fsetxattr futimesat lchown lremovexattr lsetxattr
    removexattr removexattrat setxattr setxattrat utime utimensat utimes
""".split()
SIGNALS = "kill tkill tgkill rt_sigqueueinfo rt_tgsigqueueinfo pidfd_send_signal".split()

CLONE_NEW = 0x02000000 | 0x04000000 | 0x08000000 | 0x10000000 | 0x20000000 | 0x40000000 | 0x00020000
TIOCSTI, TIOCLINUX = 0x5412, 0x541C
# Who is told, and by which signal, that a descriptor is ready: a way to kill that goes round the calls above.
FIOSETOWN, SIOCSPGRP = 0x8901, 0x8902
F_SETOWN, F_SETSIG, F_SETOWN_EX = 8, 10, 15
F_SETLEASE, F_NOTIFY = 1024, 1026
PR_SET_DUMPABLE = 4  # how a process hides what it holds from us
SHARED = 0x01 | 0x20  # MAP_SHARED and MAP_ANONYMOUS
PRIO_PROCESS, IOPRIO_WHO_PROCESS = 0, 1
AF_UNIX, SOCK_STREAM = 1, 1

LOAD, AND = 0x20, 0x54
JUMP_EQUAL, JUMP_GREATER_EQUAL, JUMP_ANY_BIT = 0x15, 0x35, 0x45
RETURN = 0x06
ALLOW, KILL, ERRNO = 0x7FFF0000, 0x80000000, 0x00050000
NUMBER_AT, ARCH_AT = 0, 4


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What the kernel calls this architecture, and its call numbers."""

    audit_arch: int
    numbers: Mapping[str, int]


MACHINES = {
    "x86_64": Machine(audit_arch=0xC000003E, numbers=X86_64 | COMMON),
    "aarch64": Machine(audit_arch=0xC00000B7, numbers=AARCH64 | COMMON),
}


def instruction(code: int, value: int, if_true: int = 0, if_false: int = 0) -> bytes:
    return struct.pack("=HBBI", code, if_true, if_false, value)


def argument(i: int) -> bytes:
    """Load the low half of an argument; all that are judged here are ints."""
    return instruction(LOAD, 16 + 8 * i)


def refuse(number: int, error: int = errno.EPERM) -> bytes:
    return instruction(JUMP_EQUAL, number, 0, 1) + instruction(RETURN, ERRNO | error)


def refuse_when(number: int, *conditions: bytes) -> bytes:
    """Conditions are tried in order on the loaded word; each skips the refusal (the last instruction but one) or not."""
    body = b"".join(conditions) + instruction(RETURN, ERRNO | errno.EPERM)
    return instruction(JUMP_EQUAL, number, 0, len(body) // 8 + 1) + body + instruction(LOAD, NUMBER_AT)


def seccomp_filter(
    machine: str | None = None, *, guard_attributes: bool = False, guard_signals: bool = False
) -> bytes | None:
    """The filter for this machine; None where its call numbers are not known here."""
    known = MACHINES.get(machine or platform.machine())
    if known is None:
        return None
    number = known.numbers
    refused = REFUSED + (ATTRIBUTES if guard_attributes else []) + (SIGNALS if guard_signals else [])
    program = [
        instruction(LOAD, ARCH_AT),
        instruction(JUMP_EQUAL, known.audit_arch, 1, 0),
        instruction(RETURN, KILL),
        instruction(LOAD, NUMBER_AT),
    ]
    if known is MACHINES["x86_64"]:  # the x32 numbers would go round everything below
        program += [instruction(JUMP_GREATER_EQUAL, 0x40000000, 0, 1), instruction(RETURN, ERRNO | errno.ENOSYS)]
    program += [refuse(number[name]) for name in refused if name in number]
    program += [refuse(number["clone3"], errno.ENOSYS)]  # its flags lie in memory; libc falls back to clone
    program += [refuse_when(number["clone"], argument(0), instruction(JUMP_ANY_BIT, CLONE_NEW, 0, 1))]
    program += [_only_self(number[name]) for name in PID_FIRST]
    program += [_only_own_priority(number["setpriority"], PRIO_PROCESS)]
    program += [_only_own_priority(number["ioprio_set"], IOPRIO_WHO_PROCESS)]
    program += [
        refuse_when(number[name], argument(1), instruction(JUMP_EQUAL, command, 0, 1))
        for name, commands in COMMANDS.items()
        for command in commands
    ]
    program += [_only_stream_pairs(number["socketpair"])]
    program += [refuse_when(number["prctl"], argument(0), instruction(JUMP_EQUAL, PR_SET_DUMPABLE, 0, 1))]
    program += [
        refuse_when(number["mmap"], argument(3), instruction(AND, SHARED), instruction(JUMP_EQUAL, SHARED, 0, 1))
    ]
    return b"".join([*program, instruction(RETURN, ALLOW)])


COMMANDS: Mapping[str, Sequence[int]] = {
    "ioctl": (TIOCSTI, TIOCLINUX, FIOSETOWN, SIOCSPGRP),
    "fcntl": (F_SETOWN, F_SETSIG, F_SETOWN_EX, F_SETLEASE, F_NOTIFY),
}
PID_FIRST: Sequence[str] = ("prlimit64", "sched_setaffinity", "sched_setscheduler", "sched_setparam", "sched_setattr")


def _only_self(number: int) -> bytes:
    """Limits and schedules may be changed of the caller (0), not of another process of the same user."""
    return refuse_when(number, argument(0), instruction(JUMP_EQUAL, 0, 1, 0))


def _only_own_priority(number: int, process: int) -> bytes:
    """`which` says what `who` is: for a group or a user, 0 is all of the caller's."""
    is_own = [
        argument(0),
        instruction(JUMP_EQUAL, process, 0, 2),
        argument(1),
        instruction(JUMP_EQUAL, 0, 1, 0),
    ]
    return refuse_when(number, *is_own)


def _only_stream_pairs(number: int) -> bytes:
    """A datagram pair could still be pointed at any socket of the machine."""
    is_stream = [
        argument(0),
        instruction(JUMP_EQUAL, AF_UNIX, 0, 3),
        argument(1),
        instruction(AND, 0xF),
        instruction(JUMP_EQUAL, SOCK_STREAM, 1, 0),
    ]
    return refuse_when(number, *is_stream)


# Versions of Landlock: the first that keeps files from being emptied, and the first that keeps signals inside.
LANDLOCK_NEEDED, SIGNAL_SCOPES = 3, 6


@cache
def landlock_version() -> int:
    """Of the kernel's interface; 0 where there is none."""
    create_ruleset, ask_version = 444, 1
    call = ctypes.CDLL(None).syscall
    return max(int(call(ctypes.c_long(create_ruleset), None, ctypes.c_size_t(0), ask_version)), 0)

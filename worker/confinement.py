"""Sandbox a decoding process: deny access to other files, the network and other processes.

Linux offers three mechanisms to unprivileged processes; each is used if the kernel supports it:

- Landlock: files outside a list cannot be opened, TCP cannot be used, and nothing outside the
  process's own domain can be traced, signalled or reached through abstract sockets.
- Seccomp: system calls that decoding never makes fail with EPERM: sockets, new programs, tracing,
  signals and limits of other processes, processors and priorities, shared memory, semaphores and
  message queues, modes and owners of files, namespaces, mounts, io_uring, the machine's clock.
- A network namespace without any interface, made once for the process that forks the children.

A missing mechanism is no error here; `worker.protections` tests from inside a child what is denied.
Children of any kind are bound to the life of their parent by `die_with_parent`.

The system calls are made through ctypes: they are stable, and there is no maintained Python package
for them that works without installing another C library.

References:
    Landlock: unprivileged access control. docs.kernel.org/userspace-api/landlock.html
    Seccomp BPF. docs.kernel.org/userspace-api/seccomp_filter.html
"""

import contextlib
import ctypes
import errno
import os
import platform
import signal
import struct
import sys
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

__all__ = ["close_network", "confine", "die_with_parent", "program_files"]

_PR_SET_PDEATHSIG, _PR_SET_NO_NEW_PRIVS, _PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 1, 38, 22, 2
_CLONE_NEWUSER, _CLONE_NEWNET = 0x1000_0000, 0x4000_0000


def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None, use_errno=True)


def confine(reads: Iterable[str | Path], writes: Iterable[str | Path]) -> None:
    """Confine this process irrevocably, with the mechanisms that the kernel supports.

    Arguments:
        reads: Files, and folders with all in them, that it may read besides `program_files()`.
        writes: Those that it may read and change.
    """
    if sys.platform != "linux":
        return
    libc = _libc()
    libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)  # required by both Landlock and seccomp
    _restrict_files(libc, reads, writes)
    _restrict_calls(libc)


# -- the life of the parent


def die_with_parent(parent: int, number: int = signal.SIGTERM) -> None:
    """Have this process receive a signal when the thread that started it ends (Linux only).

    It exits at once if its parent has ended before.

    Arguments:
        parent: Process id of the parent.
        number: The signal: SIGTERM for a process that has something to finish, else SIGKILL.
    """
    if sys.platform == "linux":
        _libc().prctl(_PR_SET_PDEATHSIG, number)
        if os.getppid() != parent:
            os._exit(1)


# -- network namespace


def close_network() -> bool:
    """Move this process, which must have one thread, to a network namespace without interfaces.

    Returns:
        Whether that was allowed.
    """
    if sys.platform != "linux":
        return False
    libc = _libc()
    if libc.unshare(_CLONE_NEWNET) == 0:  # as root
        return True
    user, group = os.geteuid(), os.getegid()
    if libc.unshare(_CLONE_NEWUSER | _CLONE_NEWNET) != 0:
        return False
    with contextlib.suppress(OSError):  # unmapped ids still own their files
        Path("/proc/self/uid_map").write_text(f"{user} {user} 1")
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/gid_map").write_text(f"{group} {group} 1")
    return True


# -- Landlock

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446  # on every architecture
_READ_FILE, _READ_DIR, _WRITE_FILE, _TRUNCATE = 1 << 2, 1 << 3, 1 << 1, 1 << 14
_FILE_RIGHTS = _READ_FILE | _WRITE_FILE | _TRUNCATE
_EXECUTE, _DEVICES, _MAKE_CHAR, _MAKE_SOCK, _MAKE_BLOCK = 1, 1 << 15, 1 << 6, 1 << 9, 1 << 11
_NEVER = _EXECUTE | _DEVICES | _MAKE_CHAR | _MAKE_SOCK | _MAKE_BLOCK
_NO_TCP = 0b11
_NO_ABSTRACT_SOCKETS_OR_SIGNALS = 0b11


def _rights(version: int) -> int:
    """Return all rights to files that this version of Landlock can withhold."""
    return (1 << (13 + (version >= 2) + (version >= 3))) - 1 | (_DEVICES if version >= 5 else 0)


def _restrict_files(
    libc: ctypes.CDLL, reads: Iterable[str | Path], writes: Iterable[str | Path]
) -> None:
    version = libc.syscall(_CREATE_RULESET, None, 0, 1)
    if version < 1:  # not in this kernel, or switched off
        return
    rights = _rights(version)
    attributes = struct.pack("=QQQ", rights, _NO_TCP, _NO_ABSTRACT_SOCKETS_OR_SIGNALS)
    size = 24 if version >= 6 else 16 if version >= 4 else 8
    rules = libc.syscall(_CREATE_RULESET, attributes, size, 0)
    if rules < 0:
        raise OSError(ctypes.get_errno(), "landlock_create_ruleset")
    try:
        for path in (*program_files(), *reads):
            _allow(libc, rules, path, _READ_FILE | _READ_DIR)
        for path in writes:
            _allow(libc, rules, path, rights & ~_NEVER)
        if libc.syscall(_RESTRICT_SELF, rules, 0) != 0:
            raise OSError(ctypes.get_errno(), "landlock_restrict_self")
    finally:
        os.close(rules)


def _allow(libc: ctypes.CDLL, rules: int, path: str | Path, rights: int) -> None:
    """Add a rule for `path` and, if it is a folder, all in it; none if it does not exist."""
    try:
        place = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return
    try:
        if not os.path.isdir(path):
            rights &= _FILE_RIGHTS
        if libc.syscall(_ADD_RULE, rules, 1, struct.pack("=Qi", rights, place), 0) != 0:
            raise OSError(ctypes.get_errno(), "landlock_add_rule")
    finally:
        os.close(place)


_SYSTEM = (
    "/lib", "/lib64", "/usr/lib", "/usr/lib64", "/usr/share", "/usr/local/lib", "/usr/local/share",
    "/etc/ld.so.cache", "/etc/localtime", "/etc/timezone",
    "/proc/self", "/proc/cpuinfo", "/proc/meminfo", "/proc/sys/vm", "/sys/devices/system/cpu",
    "/dev/null", "/dev/zero", "/dev/urandom", "/dev/random",
)  # fmt: skip


def program_files() -> Iterator[str]:
    """Yield what a decoding process reads of this machine: libraries, modules, tables of ecCodes.

    In a folder that is not one of installed packages, only the modules themselves are listed: it may
    be a working folder that also contains the data folder.
    """
    installed = {
        sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")
    }
    for prefix in {sys.prefix, sys.base_prefix}:
        installed |= {os.path.join(prefix, name) for name in ("lib", "lib64", "share")}
    yield from (*_SYSTEM, *installed)
    for name, value in os.environ.items():
        if name.startswith("ECCODES_") or name == "LD_LIBRARY_PATH":
            yield from (path for path in value.split(os.pathsep) if os.path.isabs(path))

    def is_elsewhere(path: str) -> bool:
        return not any(Path(path).is_relative_to(place) for place in installed)

    folders = dict.fromkeys(path or os.getcwd() for path in sys.path)
    for folder in filter(is_elsewhere, folders):
        yield from _modules(folder)
    for place in filter(is_elsewhere, _packages_in_use()):
        if place not in folders:
            yield place


def _packages_in_use() -> Iterator[str]:
    """Yield the folders of packages that are loaded.

    `sys.path` does not lead to all: an editable installation is found by a hook of its own, and a
    package may lack an `__init__.py`.
    """
    for name, module in list(sys.modules.items()):
        if "." not in name:
            yield from getattr(module, "__path__", ())


def _modules(folder: str) -> Iterator[str]:
    if os.path.basename(folder) in ("site-packages", "dist-packages") or os.path.isfile(folder):
        yield folder
        return
    with contextlib.suppress(OSError), os.scandir(folder) as entries:
        for entry in entries:
            is_package = entry.name.isidentifier() and os.path.exists(
                os.path.join(entry.path, "__init__.py")
            )
            if is_package or entry.name.endswith((".py", ".so", ".dist-info", ".egg-info")):
                yield entry.path


# -- seccomp

_ARCHITECTURES = {"x86_64": (0xC000_003E, 0), "aarch64": (0xC000_00B7, 1)}
"""Value of the audit architecture, and the column below with its system call numbers."""

# Numbers on x86_64 and aarch64; None if the architecture lacks the call.
_REFUSED: dict[str, tuple[int | None, int]] = {
    "socket": (41, 198), "socketpair": (53, 199), "connect": (42, 203), "bind": (49, 200),
    "listen": (50, 201), "accept": (43, 202), "accept4": (288, 242),
    "execve": (59, 221), "execveat": (322, 281),
    "ptrace": (101, 117), "process_vm_readv": (310, 270), "process_vm_writev": (311, 271),
    "kcmp": (312, 272), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438),
    "tkill": (200, 130), "rt_sigqueueinfo": (129, 138), "rt_tgsigqueueinfo": (297, 240),
    "pidfd_send_signal": (424, 424), "process_madvise": (440, 440),
    "process_mrelease": (448, 448), "migrate_pages": (256, 238), "move_pages": (279, 239),
    # Processors and priorities, of this process too: an operator may have set them for the worker.
    "sched_setaffinity": (203, 122), "sched_setparam": (142, 118),
    "sched_setscheduler": (144, 119), "sched_setattr": (314, 274),
    "setpriority": (141, 140), "ioprio_set": (251, 30),
    # What outlives the process and is open to all processes of its user, found by guessing its id.
    "shmget": (29, 194), "shmat": (30, 196), "shmctl": (31, 195),
    "semget": (64, 190), "semctl": (66, 191), "semop": (65, 193), "semtimedop": (220, 192),
    "msgget": (68, 186), "msgctl": (71, 187), "msgsnd": (69, 189), "msgrcv": (70, 188),
    "mq_open": (240, 180), "mq_unlink": (241, 181),
    "fchmod": (91, 52), "fchmodat": (268, 53), "fchmodat2": (452, 452), "fchown": (93, 55),
    "fchownat": (260, 54), "setxattr": (188, 5), "lsetxattr": (189, 6), "fsetxattr": (190, 7),
    "unshare": (272, 97), "setns": (308, 268), "mount": (165, 40), "umount2": (166, 39),
    "pivot_root": (155, 41), "chroot": (161, 51), "open_tree": (428, 428),
    "move_mount": (429, 429), "fsopen": (430, 430), "fsmount": (432, 432), "fspick": (433, 433),
    "mount_setattr": (442, 442), "open_by_handle_at": (304, 265),
    "io_uring_setup": (425, 425), "io_uring_enter": (426, 426), "io_uring_register": (427, 427),
    "bpf": (321, 280), "perf_event_open": (298, 241), "userfaultfd": (323, 282),
    "add_key": (248, 217), "request_key": (249, 218), "keyctl": (250, 219),
    # What the whole machine shares, where the worker runs as root.
    "init_module": (175, 105), "finit_module": (313, 273), "delete_module": (176, 106),
    "kexec_load": (246, 104), "kexec_file_load": (320, 294), "reboot": (169, 142),
    "swapon": (167, 224), "swapoff": (168, 225), "acct": (163, 89), "syslog": (103, 116),
    "sethostname": (170, 161), "setdomainname": (171, 162), "settimeofday": (164, 170),
    "clock_settime": (227, 112), "adjtimex": (159, 171), "clock_adjtime": (305, 266),
}  # fmt: skip
_REFUSED_OF_OLD = (90, 92, 94, 172, 173)  # chmod, chown, lchown, iopl, ioperm: of x86_64 alone
_OWN_ONLY = {"kill": (62, 129), "tgkill": (234, 131), "prlimit64": (302, 261)}
"""Calls whose first argument is a pid; allowed for this process only (0: itself or its group)."""
_CLONE, _CLONE3 = (56, 220), 435
_NEW_NAMESPACES = 0x7E02_0000
_X32 = 0x4000_0000

_LOAD, _JUMP_EQUAL, _JUMP_GREATER_EQUAL, _JUMP_BITS, _RETURN = 0x20, 0x15, 0x35, 0x45, 0x06
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16  # offsets in struct seccomp_data
_ALLOW = 0x7FFF_0000
_DENY, _UNKNOWN = (0x0005_0000 | number for number in (errno.EPERM, errno.ENOSYS))

Instruction = tuple[int, int, int, int]
"""Code, jump if true, jump if false, operand."""


def _restrict_calls(libc: ctypes.CDLL) -> None:
    if platform.machine() not in _ARCHITECTURES:
        return
    program = _filter(*_ARCHITECTURES[platform.machine()], os.getpid())
    code = b"".join(struct.pack("=HBBI", *instruction) for instruction in program)
    buffer = ctypes.create_string_buffer(code, len(code))
    head = struct.pack("@HP", len(program), ctypes.addressof(buffer))
    libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, head, 0, 0)  # fails where there is none


def _filter(architecture: int, column: int, pid: int) -> Sequence[Instruction]:
    """Return the program that the kernel runs at each system call of this process."""
    refused = [number for numbers in _REFUSED.values() if (number := numbers[column]) is not None]
    refused += _REFUSED_OF_OLD if column == 0 else ()
    program: list[Instruction] = [
        (_LOAD, 0, 0, _ARCHITECTURE),
        (_JUMP_EQUAL, 1, 0, architecture),
        (_RETURN, 0, 0, _DENY),
        (_LOAD, 0, 0, _NUMBER),
        (_JUMP_GREATER_EQUAL, 0, 1, _X32),
        (_RETURN, 0, 0, _DENY),
        (_JUMP_EQUAL, 0, 1, _CLONE3),  # its flags are in memory; libraries then use `clone`
        (_RETURN, 0, 0, _UNKNOWN),
    ]
    for number in refused:
        program += [(_JUMP_EQUAL, 0, 1, number), (_RETURN, 0, 0, _DENY)]
    program += [
        (_JUMP_EQUAL, 0, 4, _CLONE[column]),
        (_LOAD, 0, 0, _FIRST_ARGUMENT),
        (_JUMP_BITS, 0, 1, _NEW_NAMESPACES),
        (_RETURN, 0, 0, _DENY),
        (_RETURN, 0, 0, _ALLOW),
    ]
    for numbers in _OWN_ONLY.values():
        program += [
            (_JUMP_EQUAL, 0, 5, numbers[column]),
            (_LOAD, 0, 0, _FIRST_ARGUMENT),
            (_JUMP_EQUAL, 2, 0, pid),
            (_JUMP_EQUAL, 1, 0, 0),
            (_RETURN, 0, 0, _DENY),
            (_RETURN, 0, 0, _ALLOW),
        ]
    return [*program, (_RETURN, 0, 0, _ALLOW)]

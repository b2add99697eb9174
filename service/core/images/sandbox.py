"""Takes away from a process whatever decoding does not need: files, network, signals, memory.

Linux only. What a kernel does not have is left out, and told by what `confine` returns.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import platform
import resource
import struct
from pathlib import Path
from typing import Final

# Source: linux/prctl.h, linux/capability.h and linux/landlock.h. Landlock's numbers are those of
# every architecture.
_PR_SET_PDEATHSIG, _PR_SET_DUMPABLE, _PR_SET_NO_NEW_PRIVS = 1, 4, 38
_SIGKILL: Final = 9
_CREATE_RULESET, _RESTRICT_SELF, _GET_VERSION = 444, 446, 1
_CAPABILITY_VERSION_3: Final = 0x20080522
_FILE_RIGHTS_BY_VERSION: Final = {1: 13, 2: 14, 3: 15, 5: 16}
"""How many kinds of access to files Landlock can refuse since each of its versions."""
_NETWORK_SINCE, _SCOPES_SINCE = 4, 6

# Source: linux/seccomp.h, linux/filter.h, linux/bpf_common.h and linux/audit.h.
_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER = 22, 2
_LOAD_WORD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
_NUMBER_AT, _ARCHITECTURE_AT = 0, 4
_ALLOW, _REFUSE = 0x7FFF0000, 0x00050000 | errno.EPERM
_X32: Final = 0x40000000
"""Calls of x86_64's other numbering begin there, and are all refused."""
_REFUSED: Final = {
    "socket": (41, 198), "connect": (42, 203), "bind": (49, 200), "listen": (50, 201),
    "accept": (43, 202), "accept4": (288, 242), "socketpair": (53, 199),
    "execve": (59, 221), "execveat": (322, 281), "ptrace": (101, 117),
    "process_vm_readv": (310, 270), "process_vm_writev": (311, 271), "pidfd_getfd": (438, 438),
    "open": (2,), "creat": (85,), "openat": (257, 56), "openat2": (437, 437),
    "open_by_handle_at": (304, 265), "memfd_create": (319, 279), "mount": (165, 40),
    "unshare": (272, 97), "setns": (308, 268), "bpf": (321, 280), "perf_event_open": (298, 241),
    "io_uring_setup": (425, 425), "userfaultfd": (323, 282), "add_key": (248, 217),
    "request_key": (249, 218), "keyctl": (250, 219), "init_module": (175, 105),
    "finit_module": (313, 273), "kexec_load": (246, 104),
}  # fmt: skip
"""Decoding never asks the kernel for these: numbers on x86_64 and on aarch64. Source:
linux/arch/x86/entry/syscalls/syscall_64.tbl, linux/include/uapi/asm-generic/unistd.h."""
_ARCHITECTURES: Final = {"x86_64": (0, 0xC000003E), "aarch64": (1, 0xC00000B7)}
"""Says which of these numbers count, and how the kernel names the architecture."""

_libc: Final = ctypes.CDLL(None, use_errno=True)


def confine() -> list[str]:
    """Gives up privileges and the file system, for this process and its children.

    Returns what this kernel did not have.
    """
    missing = []
    with contextlib.suppress(OSError):  # where memory runs out this process is to go first
        Path("/proc/self/oom_score_adj").write_text("1000")
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    if _libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0):
        missing.append("no_new_privs")
    _drop_capabilities()
    if not _landlock():
        missing.append("Landlock")
    if not _seccomp():
        missing.append("seccomp")
    return missing


def confine_worker() -> None:
    """Gives up new files, sockets and processes; the process ends with its parent."""
    _libc.prctl(_PR_SET_PDEATHSIG, _SIGKILL, 0, 0, 0)
    _libc.prctl(_PR_SET_DUMPABLE, 0, 0, 0, 0)
    for limit in (resource.RLIMIT_NPROC, resource.RLIMIT_NOFILE):
        resource.setrlimit(limit, (0, 0))


def address_space_bytes() -> int:
    """Returns what is mapped now."""
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    return pages * resource.getpagesize()


def limit_address_space(n_bytes: int) -> None:
    """Makes allocations fail that would map more. It may be raised again."""
    resource.setrlimit(resource.RLIMIT_AS, (n_bytes, resource.RLIM_INFINITY))


def _drop_capabilities() -> None:
    """Makes root an ordinary user; of another user nothing is taken."""
    header = (ctypes.c_uint32 * 2)(_CAPABILITY_VERSION_3, 0)
    _libc.capset(header, (ctypes.c_uint32 * 6)())


def _landlock() -> bool:
    """Refuses every file, TCP, and signals to others, as far as the kernel can."""
    version = _libc.syscall(_CREATE_RULESET, None, ctypes.c_size_t(0), _GET_VERSION)
    if version < 1:
        return False
    rights = max(n for since, n in _FILE_RIGHTS_BY_VERSION.items() if since <= version)
    refused = [(1 << rights) - 1]
    if version >= _NETWORK_SINCE:
        refused.append(0b11)  # bind and connect
    if version >= _SCOPES_SINCE:
        refused.append(0b11)  # abstract sockets and signals
    rules = (ctypes.c_uint64 * len(refused))(*refused)
    size = ctypes.c_size_t(ctypes.sizeof(rules))
    ruleset = _libc.syscall(_CREATE_RULESET, rules, size, 0)
    if ruleset < 0:
        return False
    try:
        return not _libc.syscall(_RESTRICT_SELF, ruleset, 0)
    finally:
        os.close(ruleset)


def _seccomp() -> bool:
    """Has the kernel refuse what decoding never asks for, with EPERM: files of every kind, network,
    other programs and processes. Needs no_new_privs."""
    if platform.machine() not in _ARCHITECTURES:
        return False
    which, architecture = _ARCHITECTURES[platform.machine()]
    numbers = sorted(of[which] for of in _REFUSED.values() if which < len(of))
    # An instruction is: operation, how many to pass over if it holds, and if not, operand.
    program = [
        (_LOAD_WORD, 0, 0, _ARCHITECTURE_AT),
        (_EQUAL, 0, len(numbers) + 3, architecture),
        (_LOAD_WORD, 0, 0, _NUMBER_AT),
        (_AT_LEAST, len(numbers) + 1, 0, _X32),
        *((_EQUAL, len(numbers) - n, 0, number) for n, number in enumerate(numbers)),
        (_RETURN, 0, 0, _ALLOW),
        (_RETURN, 0, 0, _REFUSE),
    ]
    code = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *step) for step in program))
    filter_program = struct.pack("@HP", len(program), ctypes.addressof(code))
    return not _libc.prctl(_PR_SET_SECCOMP, _SECCOMP_MODE_FILTER, filter_program, 0, 0)

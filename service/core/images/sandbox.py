"""Takes away from a process whatever decoding does not need: files, network, signals, memory.

Linux only. What a kernel does not have is left out, and told by what `confine` returns.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import resource
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

"""PID and mount namespaces through the C library. Never leaves a process that asked half inside.

Root needs nothing more; others try a user namespace. Whether it works is tried by a child first,
because a process cannot go back: ``unshare(2)``, ``pid_namespaces(7)``, ``user_namespaces(7)``.
"""

import ctypes
import os
import signal
from pathlib import Path

CLONE_NEWNS = 0x00020000
CLONE_NEWUSER = 0x10000000
CLONE_NEWPID = 0x20000000
MS_BIND = 4096
MS_REC = 16384
MS_PRIVATE = 1 << 18
_NO_EXEC = 2 | 4 | 8
"""MS_NOSUID | MS_NODEV | MS_NOEXEC, as every /proc is mounted."""
PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36

_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent() -> None:
    """The kernel kills this process when its parent dies."""
    _check(_libc.prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0), "prctl")


def adopt_orphans() -> None:
    """Orphans below this process become its children, as if it were the first process."""
    _check(_libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0), "prctl")


def separate() -> None:
    """Children of this process start in a PID namespace of their own. ``OSError`` if not permitted."""
    if os.geteuid() == 0:
        _check(_libc.unshare(CLONE_NEWPID), "unshare")
        return
    uid, gid = os.geteuid(), os.getegid()
    _check(_libc.unshare(CLONE_NEWUSER | CLONE_NEWPID), "unshare")
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")


def furnish(folder: Path, at: Path) -> None:
    """In the first process: a /proc of its own, and ``folder`` seen as ``at``. ``OSError`` if refused.

    Mounts become private first: were that refused, a new /proc could appear outside, so it is an error.
    """
    _check(_libc.unshare(CLONE_NEWNS), "unshare")
    _mount(None, "/", None, MS_REC | MS_PRIVATE)
    _mount("proc", "/proc", "proc", _NO_EXEC)
    _mount(str(folder), str(at), None, MS_BIND)


def permitted(folder: Path, at: Path) -> str:
    """Empty when ``separate`` and ``furnish`` work here, else why not. Tried in a child that ends."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(reader)
        _probe(folder, at, writer)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        said = pipe.read()
    os.waitpid(pid, 0)
    return "" if said == b"ok" else said.decode(errors="replace") or "the trial process died"


def _probe(folder: Path, at: Path, writer: int) -> None:
    try:
        separate()
        inner = os.fork()
        if inner == 0:
            try:
                furnish(folder, at)
                os.write(writer, b"ok")
            except OSError as error:
                os.write(writer, str(error).encode())
            finally:
                os._exit(0)
        os.waitpid(inner, 0)
    except OSError as error:
        os.write(writer, str(error).encode())
    finally:
        os._exit(0)


def _mount(source: str | None, target: str, kind: str | None, flags: int) -> None:
    result = _libc.mount(
        source.encode() if source else None,
        target.encode(),
        kind.encode() if kind else None,
        ctypes.c_ulong(flags),
        None,
    )
    _check(result, f"mount {target}")


def _check(result: int, what: str) -> None:
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")

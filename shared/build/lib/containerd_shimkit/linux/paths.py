"""Paths inside a root that is not trusted.

The image decides what every component is, so a path is never handed to the kernel as a string
that starts at the host's root. Two ways, with the same meaning:

- ``open_in_root`` asks the kernel (openat2 with RESOLVE_IN_ROOT) in one call;
- ``make_in_root`` walks: each component is opened with O_NOFOLLOW below the one before, ``..``
  goes back in the list of opened directories and so never above the root, and a symbolic link is
  read and its components walked in turn. It creates what is missing, also behind a link.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager

from containerd_shimkit.linux import constants as k
from containerd_shimkit.linux.syscalls import openat2

O_PATH = os.O_PATH | os.O_CLOEXEC
MAX_LINKS = 40  # as the kernel's MAXSYMLINKS


def fd_path(fd: int) -> str:
    """Return a path that leads to what ``fd`` is open on, whatever the names have become."""
    return f"/proc/self/fd/{fd}"


@contextmanager
def closing(fd: int) -> Iterator[int]:
    try:
        yield fd
    finally:
        os.close(fd)


def open_in_root(root_fd: int, path: str, flags: int = O_PATH, *, links: bool = True) -> int:
    """Open ``path`` as a process whose root is ``root_fd`` would; it has to exist.

    links: False refuses every symbolic link on the way with ELOOP.
    """
    resolve = k.RESOLVE_IN_ROOT | k.RESOLVE_NO_MAGICLINKS
    if not links:
        resolve |= k.RESOLVE_NO_SYMLINKS
    try:
        return openat2(root_fd, path, flags, resolve=resolve)
    except OSError as exc:
        # EPERM is what a seccomp filter of an outer container answers to calls it does not know.
        if exc.errno not in (errno.ENOSYS, errno.EPERM):
            raise
    with closing(_walk(root_fd, path, make=None, links=links)) as fd:
        return os.open(fd_path(fd), (flags & ~os.O_NOFOLLOW) | os.O_CLOEXEC)


def make_in_root(
    root_fd: int, path: str, *, directory: bool, links: bool = True, mode: int = 0o755
) -> int:
    """Open ``path`` with O_PATH, creating it and the directories above it where missing.

    mode: of directories that are created; a file is created empty.
    """
    try:
        return open_in_root(root_fd, path, links=links)
    except FileNotFoundError:
        return _walk(root_fd, path, make="dir" if directory else "file", links=links, mode=mode)


def open_parent(root_fd: int, path: str) -> tuple[int, str]:
    """Return the directory ``path`` is in, created where missing, and the last name.

    Nothing is said about the last name: a call that uses it must not follow links.
    """
    parent, _, name = path.rstrip("/").rpartition("/")
    if name in ("", ".", ".."):
        raise OSError(errno.EINVAL, "no name to create", path)
    return make_in_root(root_fd, parent or "/", directory=True), name


def _walk(root_fd: int, path: str, *, make: str | None, links: bool, mode: int = 0o755) -> int:
    todo = [name for name in reversed(path.split("/")) if name not in ("", ".")]
    opened = [os.dup(root_fd)]
    seen_links = 0
    try:
        while todo:
            name = todo.pop()
            if name == "..":
                if len(opened) > 1:
                    os.close(opened.pop())
                continue
            wanted = "dir" if make == "file" and todo else make
            fd = _open_or_make(opened[-1], name, wanted, mode)
            kind = os.fstat(fd).st_mode
            if not stat.S_ISLNK(kind):
                if todo and not stat.S_ISDIR(kind):
                    os.close(fd)
                    raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR), path)
                opened.append(fd)
                continue
            with closing(fd):
                target = os.readlink("", dir_fd=fd)
            seen_links += 1
            if not links or seen_links > MAX_LINKS:
                raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), path)
            if target.startswith("/"):
                while len(opened) > 1:
                    os.close(opened.pop())
            todo += [part for part in reversed(target.split("/")) if part not in ("", ".")]
        return opened.pop()
    finally:
        for fd in opened:
            os.close(fd)


def _open_or_make(dir_fd: int, name: str, make: str | None, mode: int) -> int:
    try:
        return os.open(name, O_PATH | os.O_NOFOLLOW, dir_fd=dir_fd)
    except FileNotFoundError:
        if make is None:
            raise
    try:
        if make == "file":
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
            os.close(os.open(name, flags, 0o644, dir_fd=dir_fd))
        else:
            os.mkdir(name, mode, dir_fd=dir_fd)
    except FileExistsError:
        pass  # another container that shares the volume was faster
    return os.open(name, O_PATH | os.O_NOFOLLOW, dir_fd=dir_fd)

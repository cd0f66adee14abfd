"""The parts of ``config.json`` (OCI runtime spec) that are in use, checked once and then typed.

Every message names the file, the field, the value and the rule. Fields not named here are ignored,
as the spec wants it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn, TypeVar

from containerd_shimkit.errors import BundleError

T = TypeVar("T")

MAX_LIST = 100_000  # entries of any list; far above every real one
MAX_STRING = 1 << 20  # characters of any string; the kernel takes 128 KiB as an argument
MAX_ID = 2**32 - 2  # uid_t; -1 means "no change" to the kernel
UINT64 = 2**64 - 1
MAX_HOOK_SECONDS = 24 * 3600
HOOKS = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
RLIMITS = frozenset(
    "RLIMIT_" + name
    for name in (
        *("AS", "CORE", "CPU", "DATA", "FSIZE", "LOCKS", "MEMLOCK", "MSGQUEUE", "NICE", "NOFILE"),
        *("NPROC", "RSS", "RTPRIO", "RTTIME", "SIGPENDING", "STACK"),
    )
)


@dataclass(frozen=True, slots=True)
class User:
    """``process.user``."""

    uid: int = 0
    gid: int = 0
    additional_gids: tuple[int, ...] = ()
    umask: int | None = None


@dataclass(frozen=True, slots=True)
class Rlimit:
    """An entry of ``process.rlimits``; 2**64 - 1 is no limit."""

    type: str
    soft: int
    hard: int


@dataclass(frozen=True, slots=True)
class Scheduler:
    """``process.scheduler``; times in nanoseconds."""

    policy: str
    nice: int = 0
    priority: int = 0
    flags: tuple[str, ...] = ()
    runtime: int = 0
    deadline: int = 0
    period: int = 0


@dataclass(frozen=True, slots=True)
class IoPriority:
    """``process.ioPriority``."""

    name: str
    level: int


@dataclass(frozen=True, slots=True)
class Process:
    """``process``."""

    args: tuple[str, ...]
    env: tuple[str, ...] = ()
    cwd: str = "/"
    user: User = field(default_factory=User)
    capabilities: Mapping[str, tuple[str, ...]] | None = None
    """Names by set; None is no capability at all."""
    rlimits: tuple[Rlimit, ...] = ()
    no_new_privileges: bool = False
    oom_score_adj: int | None = None
    terminal: bool = False
    apparmor_profile: str = ""
    selinux_label: str = ""
    scheduler: Scheduler | None = None
    io_priority: IoPriority | None = None

    @property
    def environment(self) -> dict[str, str]:
        """``env`` by name; the last one of a name counts."""
        return dict(entry.split("=", 1) for entry in self.env)


@dataclass(frozen=True, slots=True)
class Root:
    """``root``."""

    path: str = "rootfs"
    readonly: bool = False


@dataclass(frozen=True, slots=True)
class Mount:
    """An entry of ``mounts``."""

    destination: str
    type: str = ""
    source: str = ""
    options: tuple[str, ...] = ()
    id_mapped: bool = False


@dataclass(frozen=True, slots=True)
class Namespace:
    """An entry of ``linux.namespaces``; without a path it is a new one."""

    type: str
    path: str | None = None


@dataclass(frozen=True, slots=True)
class IdMapping:
    """An entry of ``linux.uidMappings`` or ``linux.gidMappings``."""

    container_id: int
    host_id: int
    size: int


@dataclass(frozen=True, slots=True)
class Device:
    """An entry of ``linux.devices``."""

    path: str
    type: str
    major: int = 0
    minor: int = 0
    file_mode: int | None = None
    uid: int | None = None
    gid: int | None = None


@dataclass(frozen=True, slots=True)
class Linux:
    """``linux``."""

    namespaces: tuple[Namespace, ...] = ()
    uid_mappings: tuple[IdMapping, ...] = ()
    gid_mappings: tuple[IdMapping, ...] = ()
    cgroups_path: str = ""
    resources: Mapping[str, Any] = field(default_factory=dict)
    """As in the file, its numbers and strings checked."""
    devices: tuple[Device, ...] = ()
    sysctl: Mapping[str, str] = field(default_factory=dict)
    masked_paths: tuple[str, ...] = ()
    readonly_paths: tuple[str, ...] = ()
    rootfs_propagation: str = ""
    seccomp: Mapping[str, Any] | None = None
    mount_label: str = ""
    time_offsets: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    """Seconds and nanoseconds by clock."""
    personality: str = ""
    unsupported: tuple[str, ...] = ()
    """Fields that are set and that no container with a guest can have."""


@dataclass(frozen=True, slots=True)
class Hook:
    """An entry of one of the lists in ``hooks``."""

    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout: float | None = None
    """Seconds."""


@dataclass(frozen=True, slots=True)
class Spec:
    """``config.json``."""

    process: Process
    oci_version: str = ""
    root: Root = field(default_factory=Root)
    hostname: str = ""
    domainname: str = ""
    mounts: tuple[Mount, ...] = ()
    linux: Linux = field(default_factory=Linux)
    hooks: Mapping[str, tuple[Hook, ...]] = field(default_factory=dict)
    """By the name of their list; without empty ones."""
    annotations: Mapping[str, str] = field(default_factory=dict)


def parse_spec(data: object, file: str = "config.json") -> Spec:
    """Return the spec in ``data``, decoded JSON. Raises BundleError."""
    top = _Fields(data, "", file)
    process = top.section("process")
    if process is None:
        top.fail("process", ..., "is missing")
    root = top.section("root")
    linux = top.section("linux")
    return Spec(
        process=_process(process),
        oci_version=top.string("ociVersion"),
        root=_root(root) if root else Root(),
        hostname=_hostname(top, "hostname"),
        domainname=_hostname(top, "domainname"),
        mounts=top.objects("mounts", _mount),
        linux=_linux(linux) if linux else Linux(),
        hooks=parse_hooks(top.mapping("hooks"), file),
        annotations=top.strings_by_name("annotations"),
    )


def parse_resources(data: object, file: str = "resources", path: str = "") -> dict[str, Any]:
    """Return ``linux.resources``, as in the file and in an Update, with its types checked."""
    fields = _Fields(data, path, file)
    for name in ("memory", "cpu", "pids", "blockIO", "network"):
        section = fields.section(name)
        for key in section.data if section else ():
            assert section is not None
            if key in ("cpus", "mems"):
                section.string(key)
            elif key in ("disableOOMKiller", "useHierarchy", "checkBeforeUpdate"):
                section.boolean(key)
            elif not isinstance(section.data[key], list):
                section.integer(key, -(2**63), UINT64)
            else:
                section.objects(key, _resource_entry)
    fields.objects("devices", _device_rule)
    fields.objects("hugepageLimits", _hugepage_limit)
    fields.strings_by_name("unified")
    return dict(fields.data)


def parse_hooks(data: object, file: str = "hooks") -> dict[str, tuple[Hook, ...]]:
    """Return ``hooks``; lists of other names than the spec's are left out. Raises BundleError."""
    fields = _Fields(data, "hooks", file)
    lists = {name: fields.objects(name, _hook) for name in HOOKS}
    return {name: hooks for name, hooks in lists.items() if hooks}


# Sections


def _hook(f: _Fields) -> Hook:
    if not (path := f.absolute("path", "")):
        f.fail("path", path, "is empty")
    return Hook(
        path=path,
        args=f.strings("args"),
        env=_environment(f),
        timeout=f.optional_integer("timeout", 1, MAX_HOOK_SECONDS),
    )


def _environment(f: _Fields) -> tuple[str, ...]:
    env = f.strings("env")
    for entry in env:
        if entry.find("=") < 1:
            f.fail("env", entry, "is not of the form NAME=value")
    return env


def _process(f: _Fields) -> Process:
    capabilities = f.section("capabilities")
    user = f.section("user")
    args = f.strings("args")
    if not args:
        f.fail("args", ..., "is empty: there is nothing to run")
    return Process(
        args=args,
        env=_environment(f),
        cwd=f.absolute("cwd", "/"),
        user=_user(user) if user else User(),
        capabilities=(
            {name: capabilities.strings(name) for name in capabilities.data}
            if capabilities
            else None
        ),
        rlimits=f.objects("rlimits", _rlimit, unique="type"),
        no_new_privileges=f.boolean("noNewPrivileges"),
        oom_score_adj=f.optional_integer("oomScoreAdj", -1000, 1000),
        terminal=f.boolean("terminal"),
        apparmor_profile=f.string("apparmorProfile"),
        selinux_label=f.string("selinuxLabel"),
        scheduler=_scheduler(scheduler) if (scheduler := f.section("scheduler")) else None,
        io_priority=_io_priority(priority) if (priority := f.section("ioPriority")) else None,
    )


def _scheduler(f: _Fields) -> Scheduler:
    return Scheduler(
        policy=f.string("policy"),
        nice=f.optional_integer("nice", -20, 19) or 0,
        priority=f.integer("priority", 0, 99),
        flags=f.strings("flags"),
        runtime=f.integer("runtime", 0, UINT64),
        deadline=f.integer("deadline", 0, UINT64),
        period=f.integer("period", 0, UINT64),
    )


def _io_priority(f: _Fields) -> IoPriority:
    return IoPriority(name=f.string("class"), level=f.integer("priority", 0, 7))


def _user(f: _Fields) -> User:
    return User(
        uid=f.integer("uid", 0, MAX_ID),
        gid=f.integer("gid", 0, MAX_ID),
        additional_gids=f.integers("additionalGids", 0, MAX_ID),
        umask=f.optional_integer("umask", 0, 0o777),
    )


def _rlimit(f: _Fields) -> Rlimit:
    limit = Rlimit(
        type=f.string("type"), soft=f.integer("soft", 0, UINT64), hard=f.integer("hard", 0, UINT64)
    )
    if limit.type not in RLIMITS:
        f.fail("type", limit.type, "is not the name of a limit")
    if limit.soft > limit.hard:
        f.fail("soft", limit.soft, f"exceeds hard, {limit.hard}")
    return limit


def _root(f: _Fields) -> Root:
    path = f.string("path")
    if not path:
        f.fail("path", path, "is empty")
    return Root(path=path, readonly=f.boolean("readonly"))


def _mount(f: _Fields) -> Mount:
    destination = f.string("destination")
    if not destination:
        f.fail("destination", destination, "is empty")
    if not destination.startswith("/"):  # deprecated in the spec, and taken from the root by runc
        destination = f"/{destination}"
    return Mount(
        destination=destination,
        type=f.string("type"),
        source=f.string("source"),
        options=f.strings("options"),
        id_mapped=bool(f.data.get("uidMappings") or f.data.get("gidMappings")),
    )


def _linux(f: _Fields) -> Linux:
    personality = f.section("personality")
    return Linux(
        namespaces=f.objects("namespaces", _namespace, unique="type"),
        uid_mappings=f.objects("uidMappings", _id_mapping),
        gid_mappings=f.objects("gidMappings", _id_mapping),
        cgroups_path=f.string("cgroupsPath"),
        resources=parse_resources(f.mapping("resources"), f.file, "linux.resources"),
        devices=f.objects("devices", _device),
        sysctl=f.strings_by_name("sysctl"),
        masked_paths=f.strings("maskedPaths"),
        readonly_paths=f.strings("readonlyPaths"),
        rootfs_propagation=f.string("rootfsPropagation"),
        seccomp=f.mapping("seccomp") or None,
        mount_label=f.string("mountLabel"),
        time_offsets=_time_offsets(f),
        personality=personality.string("domain") if personality else "",
        unsupported=_unsupported(f, personality),
    )


def _time_offsets(f: _Fields) -> dict[str, tuple[int, int]]:
    found = {}
    clocks = f.section("timeOffsets")
    for clock in clocks.data if clocks else ():
        assert clocks is not None
        if clock not in ("monotonic", "boottime"):
            clocks.fail(clock, ..., "is not one of monotonic, boottime")
        if (offset := clocks.section(clock)) is not None:
            seconds = offset.optional_integer("secs", -(2**63), 2**63 - 1) or 0
            found[clock] = seconds, offset.integer("nanosecs", 0, 999_999_999)
    return found


def _unsupported(f: _Fields, personality: _Fields | None) -> tuple[str, ...]:
    names = [
        f"linux.{name}" for name in ("intelRdt", "memoryPolicy", "netDevices") if f.data.get(name)
    ]
    if personality and personality.strings("flags"):
        names.append("linux.personality.flags")
    return tuple(names)


def _namespace(f: _Fields) -> Namespace:
    kind = f.string("type")
    if not kind:
        f.fail("type", kind, "is empty")
    return Namespace(kind, f.absolute("path", "") or None)


def _id_mapping(f: _Fields) -> IdMapping:
    return IdMapping(
        container_id=f.integer("containerID", 0, MAX_ID),
        host_id=f.integer("hostID", 0, MAX_ID),
        size=f.integer("size", 1, MAX_ID + 1),
    )


def _device(f: _Fields) -> Device:
    kind = f.string("type")
    if kind not in ("b", "c", "u", "p"):
        f.fail("type", kind, "is not one of b, c, u, p")
    return Device(
        path=f.absolute("path", ""),
        type=kind,
        major=f.integer("major", 0, 2**32 - 1),
        minor=f.integer("minor", 0, 2**32 - 1),
        file_mode=f.optional_integer("fileMode", 0, 0o177777),
        uid=f.optional_integer("uid", 0, MAX_ID),
        gid=f.optional_integer("gid", 0, MAX_ID),
    )


def _device_rule(f: _Fields) -> None:
    f.boolean("allow")
    if (kind := f.string("type")) not in ("", "a", "b", "c"):
        f.fail("type", kind, "is not one of a, b, c")
    if set(access := f.string("access")) - set("rwm"):
        f.fail("access", access, "has letters other than r, w, m")
    f.optional_integer("major", -1, 2**32 - 1)
    f.optional_integer("minor", -1, 2**32 - 1)


def _hugepage_limit(f: _Fields) -> None:
    if not (size := f.string("pageSize")) or not size.isalnum():
        f.fail("pageSize", size, "is not a page size such as 2MB")
    f.integer("limit", 0, UINT64)


def _resource_entry(f: _Fields) -> None:
    """An entry of blockIO's device lists and of network.priorities: flat, numbers and names."""
    for key, value in f.data.items():
        if isinstance(value, str):
            f.string(key)
        else:
            f.integer(key, 0, UINT64)


def _hostname(f: _Fields, name: str) -> str:
    value = f.string(name)
    if len(value.encode()) > 64:  # __NEW_UTS_LEN, linux/utsname.h
        f.fail(name, value, "is longer than 64 bytes")
    return value


class _Fields:
    """One JSON object, and how each of its fields has to look."""

    __slots__ = ("data", "file", "path")

    def __init__(self, data: object, path: str, file: str) -> None:
        self.path = path
        self.file = file
        if not isinstance(data, dict):
            shown = f"{path}: " if path else ""
            raise BundleError(f"{file}: {shown}{_shown(data)} is not an object")
        self.data: dict[str, Any] = data

    def fail(self, name: str, value: object, rule: str) -> NoReturn:
        where = f"{self.path}.{name}" if self.path else name
        text = "" if value is ... else f" {_shown(value)}"
        raise BundleError(f"{self.file}: {where}:{text} {rule}")

    def string(self, name: str) -> str:
        value = self.data.get(name)
        return "" if value is None else self._string(name, value)

    def absolute(self, name: str, default: str) -> str:
        value = self.string(name)
        if value and not value.startswith("/"):
            self.fail(name, value, "is not an absolute path")
        return value or default

    def boolean(self, name: str) -> bool:
        value = self.data.get(name)
        if value is None or isinstance(value, bool):
            return bool(value)
        self.fail(name, value, "is not true or false")

    def integer(self, name: str, low: int, high: int) -> int:
        value = self.optional_integer(name, low, high)
        return max(low, 0) if value is None else value

    def optional_integer(self, name: str, low: int, high: int) -> int | None:
        value = self.data.get(name)
        return None if value is None else self._integer(name, value, low, high)

    def integers(self, name: str, low: int, high: int) -> tuple[int, ...]:
        return tuple(self._integer(name, item, low, high) for item in self._list(name))

    def strings(self, name: str) -> tuple[str, ...]:
        return tuple([self._string(name, item) for item in self._list(name)])

    def mapping(self, name: str) -> dict[str, Any]:
        value = self.data.get(name)
        if value is None:
            return {}
        if not isinstance(value, dict):
            self.fail(name, value, "is not an object")
        return value

    def strings_by_name(self, name: str) -> dict[str, str]:
        found = self.mapping(name)
        for key, value in found.items():
            self._string(name, key)
            self._string(f"{name}.{key}", value)
        return found

    def section(self, name: str) -> _Fields | None:
        value = self.data.get(name)
        if value is None:
            return None
        return _Fields(value, f"{self.path}.{name}" if self.path else name, self.file)

    def objects(self, name: str, parse: Callable[[_Fields], T], unique: str = "") -> tuple[T, ...]:
        where, seen = f"{self.path}.{name}" if self.path else name, set()
        found = []
        for index, item in enumerate(self._list(name)):
            fields = _Fields(item, f"{where}[{index}]", self.file)
            found.append(parse(fields))
            if unique:
                if (key := fields.data.get(unique)) in seen:
                    fields.fail(unique, key, "is given twice")
                seen.add(key)
        return tuple(found)

    def _list(self, name: str) -> list[Any]:
        value = self.data.get(name)
        if value is None:
            return []
        if not isinstance(value, list):
            self.fail(name, value, "is not a list")
        if len(value) > MAX_LIST:
            self.fail(name, ..., f"has {len(value)} entries, more than {MAX_LIST}")
        return value

    def _string(self, name: str, value: object) -> str:
        if not isinstance(value, str):
            self.fail(name, value, "is not a string")
        if "\0" in value:
            self.fail(name, value, "has a NUL character")
        if len(value) > MAX_STRING:
            self.fail(name, value, f"is longer than {MAX_STRING} characters")
        if not value.isascii() and any("\ud800" <= letter <= "\udfff" for letter in value):
            self.fail(name, value, "has half of a surrogate pair")
        return value

    def _integer(self, name: str, value: object, low: int, high: int) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            self.fail(name, value, "is not an integer")
        if not low <= value <= high:
            self.fail(name, value, f"is not in {low}..{high}")
        return value


def _shown(value: object) -> str:
    text = f'"{value}"' if isinstance(value, str) else "null" if value is None else repr(value)
    text = text.replace("\0", "\\0").encode(errors="backslashreplace").decode()
    return text if len(text) <= 80 else f"{text[:76]} ..."

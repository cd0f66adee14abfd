"""Reading ``slightfile.toml``, versions 0.1 and 0.2.

Source: SpiderLightning 0.5 crates/slightfile/src/{lib,slightfile,secret_store}.rs for the rules;
crates/runtime-configs/src/lib.rs for references in configs.
"""

from __future__ import annotations

import re
from typing import Final

from containerd_shim_slight_v1.slightfile.model import Capability, ConfigReference, SlightFile
from containerd_shim_slight_v1.slightfile.resources import RESOURCES, Resource
from containerd_shimkit.errors import ManifestError
from containerd_shimkit.text.toml_reader import Problems, Table, nearest
from containerd_shimkit.text.toml_source import load_toml

VERSIONS: Final = ("0.1", "0.2")
STORES: Final = ("azapp", "envvars", "local", "usersecrets")
ANY_NAME: Final = "*"

_REFERENCE: Final = re.compile(r"\$\{(.+)\}")
_STORE_AND_KEY: Final = re.compile(r"(.+)\.(.+)")
_NO_RESOURCE: Final = Resource("", "")


def parse_slightfile(text: str, file: str = "slightfile.toml") -> SlightFile:
    """Parse a slightfile. file: its name in messages.

    Raises ManifestError with a line ``file:line:column: field = value: rule`` for each fault.
    """
    return _Reader(text, file).read()


def check_configs(slightfile: SlightFile) -> None:
    """Raise ManifestError for a capability that lacks a config which it needs."""
    for capability in slightfile.capabilities:
        for names in capability.resource.configs:
            if not any(slightfile.config(capability, name) for name in names):
                raise ManifestError(_lacking(slightfile, capability, " or ".join(names)))


def _lacking(slightfile: SlightFile, capability: Capability, name: str) -> str:
    what = f"{capability.where}: {capability.resource.name} needs the config {name}: "
    if slightfile.version == "0.1":
        return what + 'a file of version 0.1 says by `secret_store` where it is ("configs.envvars")'
    if capability.configs is None:
        return what + "this capability needs a [capability.configs] section"
    return what + "no config of that name is in [capability.configs]"


class _Reader:
    def __init__(self, text: str, file: str) -> None:
        source = load_toml(text, file)
        self._source = source
        self._problems = Problems(source)
        self._top = Table(self._problems, source.data)
        self._warnings: list[str] = []

    def read(self) -> SlightFile:
        top = self._top
        version = top.required_string("specversion", _version_fault)
        store = top.optional_string("secret_store", _secret_store_fault)
        secrets = self._secrets()
        capabilities = tuple(
            self._capability(table, version) for table in top.tables("capability", required=False)
        )
        known = {"specversion", "secret_store", "secret_settings", "capability"}
        self._note_unknown(top, known)
        self._check_names(capabilities)
        self._problems.raise_if_any()
        return SlightFile(
            version=version,
            secret_store=store.removeprefix("configs.") if store and version == "0.1" else None,
            secrets=secrets,
            capabilities=capabilities,
            warnings=tuple(self._warnings),
        )

    def _secrets(self) -> dict[str, str]:
        secrets: dict[str, str] = {}
        for table in self._top.tables("secret_settings", required=False):
            name = table.required_string("name")
            value = table.optional_string("value", secret=True)
            if "value" not in table.names():
                table.missing("value")
            # Of several with one name upstream finds the first.
            secrets.setdefault(name, value or "")
            self._note_unknown(table, {"name", "value"})
        return secrets

    def _capability(self, table: Table, version: str) -> Capability:
        is_of_2 = "resource" in table.names()
        if version in VERSIONS and is_of_2 != (version == "0.2"):
            other = "0.2" if is_of_2 else "0.1"
            table.complain(
                f"you are using a {version} specversion, but you are using a {other} capability "
                "format"
            )
            return Capability(_NO_RESOURCE, None, None, table.where)
        named_by = "resource" if is_of_2 else "name"
        written = table.required_string(named_by, _resource_fault)
        resource = RESOURCES.get(written, _NO_RESOURCE)
        name: str | None = written
        configs = None
        known = {"name"}
        if is_of_2:
            known = {"name", "resource", "configs"}
            name = table.required_string("name")
            configs = self._configs(table)
        self._note_unknown(table, known)
        return Capability(resource, None if name == ANY_NAME else name, configs, table.where)

    def _configs(self, table: Table) -> dict[str, ConfigReference] | None:
        configs = table.optional_table("configs")
        if configs is None:
            return None
        found: dict[str, ConfigReference] = {}
        for key in configs.names():
            # What is written there may be a password.
            text = configs.optional_string(key, secret=True) or ""
            reference = _reference(text)
            if isinstance(reference, str):
                configs.problem(key, reference)
            else:
                found[key] = reference
        return found

    def _check_names(self, capabilities: tuple[Capability, ...]) -> None:
        names: dict[str, set[str | None]] = {}
        for index, capability in enumerate(capabilities):
            if capability.resource is _NO_RESOURCE:
                continue
            taken = names.setdefault(capability.resource.family, set())
            name = capability.name
            if name in taken or None in taken or (name is None and taken):
                shown = ANY_NAME if name is None else name
                self._problems.add(
                    ("capability", index, "name"),
                    f"capability[{index}].name: the namespace {shown} is already defined in the "
                    "slightfile",
                )
            taken.add(name)

    def _note_unknown(self, table: Table, known: set[str]) -> None:
        for key in table.names():
            if key not in known:
                where = self._source.where(table.path_to(key))
                hint = nearest(key, sorted(known), "fields")
                self._warnings.append(
                    f"{where}: {table.label_of(key)}: unknown field, of no effect; {hint}"
                )


def _version_fault(version: str) -> str | None:
    return None if version in VERSIONS else f"known versions: {', '.join(VERSIONS)}"


def _secret_store_fault(store: str) -> str | None:
    names = [f"configs.{name}" for name in STORES]
    return None if store in names else f"known secret stores: {', '.join(names)}"


def _resource_fault(name: str) -> str | None:
    return None if name in RESOURCES else nearest(name, RESOURCES, "resources")


def _reference(text: str) -> ConfigReference | str:
    """Return where a config's value is, or what is wrong with what is written."""
    found = _REFERENCE.fullmatch(text)
    if found is None:
        return ConfigReference("local", text)
    parts = _STORE_AND_KEY.fullmatch(found[1])
    if parts is None:
        return "a reference is ${STORE.KEY}"
    if parts[1] not in STORES:
        return f"unknown store {parts[1]!r}; {nearest(parts[1], STORES, 'stores')}"
    return ConfigReference(parts[1], parts[2])

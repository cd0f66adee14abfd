"""``<worker>.toml``, which lies beside a worker and says what it may use.

As upstream, a file that cannot be used is reported and counts as if it were not there: its worker
has no more then than every worker has. A field that nobody knows is reported and is of no effect.

Source: wasm-workers-server 1.7 crates/worker/src/config.rs, features/*.rs.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from containerd_shimkit.errors import ManifestError
from containerd_shimkit.text.toml_reader import Problems, Table
from containerd_shimkit.text.toml_source import load_toml

METHODS: Final = ("GET", "POST", "PUT", "PATCH", "DELETE")
"""Those that a worker may use unless its configuration says which."""

_MAX_NAMESPACE: Final = 200
_MAX_FOLDERS: Final = 100


class UnsupportedFeatureError(ManifestError):
    """A worker needs what this shim does not offer."""


@dataclass(frozen=True, slots=True)
class Folder:
    """A directory that a worker may read and write."""

    source: str
    """Relative to the worker's directory."""
    target: str
    """Where the worker sees it."""
    where: str
    """File, line and column, for messages."""


@dataclass(frozen=True, slots=True)
class HttpRequests:
    """Which requests a worker may make."""

    allowed_hosts: tuple[str, ...] = ()
    allowed_methods: tuple[str, ...] = METHODS
    allow_http: bool = False


@dataclass(frozen=True, slots=True)
class WorkerConfig:
    """What a worker's file says; as it is, that of a worker without one."""

    name: str | None = None
    version: str = ""
    namespace: str | None = None
    """Of its key-value store."""
    vars: Mapping[str, str] = field(default_factory=dict, repr=False)
    from_environment: frozenset[str] = frozenset()
    """The variables whose values are the container's: they may be secret."""
    folders: tuple[Folder, ...] = ()
    http: HttpRequests = field(default_factory=HttpRequests)
    warnings: tuple[str, ...] = ()


def parse_worker_config(text: str, file: str, environment: Mapping[str, str]) -> WorkerConfig:
    """Read a worker's configuration.

    file: what messages call it.  environment: of the container.
    Raises ManifestError with all faults and their places; UnsupportedFeatureError.
    """
    source = load_toml(text, file)
    problems = Problems(source)
    config = _Reader(environment).read(Table(problems, source.data))
    problems.raise_if_any()
    return config


class _Reader:
    def __init__(self, environment: Mapping[str, str]) -> None:
        self._environment = environment
        self._warnings: list[str] = []

    def read(self, table: Table) -> WorkerConfig:
        name = table.optional_string("name")
        version = table.required_string("version")
        features = table.optional_table("features")
        http = self._features(features) if features is not None else HttpRequests()
        data = table.optional_table("data")
        namespace = self._namespace(data) if data is not None else None
        folders = self._folders(table)
        variables, secret = self._vars(table)
        self._done(table)
        return WorkerConfig(
            *(name, version, namespace, variables, secret, folders, http),
            warnings=tuple(self._warnings),
        )

    def _namespace(self, data: Table) -> str | None:
        store = data.optional_table("kv")
        self._done(data)
        if store is None:
            return None
        namespace = store.required_string("namespace", _namespace_rule)
        self._done(store)
        return namespace

    def _vars(self, table: Table) -> tuple[dict[str, str], frozenset[str]]:
        values = table.string_map("vars", _variable_name_rule, _no_nul)
        secret = set()
        for name, value in values.items():
            if value.startswith("$") and " " not in value:
                values[name] = self._environment.get(value[1:], "")
                secret.add(name)
        return values, frozenset(secret)

    def _folders(self, table: Table) -> tuple[Folder, ...]:
        folders = []
        for each in table.tables("folders", required=False):
            where = each.where
            source = each.optional_string("from", _no_nul) or ""
            target = each.required_string("to", _target_rule)
            self._done(each)
            separator = "/" if "/" in source else "\\"
            folders.append(Folder("/".join(source.split(separator)), target, where))
        if len(folders) > _MAX_FOLDERS:
            table.problem("folders", f"more than {_MAX_FOLDERS}")
        return tuple(folders)

    def _features(self, features: Table) -> HttpRequests:
        found = HttpRequests()
        if (http := features.optional_table("http_requests")) is not None:
            methods = http.strings("allowed_methods")
            found = HttpRequests(
                http.strings("allowed_hosts"),
                methods if "allowed_methods" in http.names() else METHODS,
                http.boolean("allow_http"),
            )
            self._done(http)
        if (models := features.optional_table("wasi_nn")) is not None:
            for key in ("allowed_backends", "preload_models"):
                if models.raw(key):
                    raise UnsupportedFeatureError(
                        f"{models.where}: this shim has no machine learning (wasi_nn); "
                        "without this table the worker can be run"
                    )
            self._done(models)
        self._done(features)
        return found

    def _done(self, table: Table) -> None:
        """Remember unknown fields as warnings: upstream passes them over."""
        self._warnings += table.unknown()


def _namespace_rule(text: str) -> str | None:
    if not text or len(text) > _MAX_NAMESPACE:
        return f"must have 1 to {_MAX_NAMESPACE} characters"
    return _no_nul(text)


def _variable_name_rule(text: str) -> str | None:
    return (
        "a variable's name must not be empty or hold `=`"
        if not text or "=" in text
        else (_no_nul(text))
    )


def _target_rule(text: str) -> str | None:
    return "must not be empty" if not text else _no_nul(text)


def _no_nul(text: str) -> str | None:
    return "must not contain a NUL" if "\0" in text else None

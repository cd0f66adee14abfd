"""``<worker>.toml``: every field, and what is wrong with it."""

from __future__ import annotations

import pytest

from containerd_shim_wws_v1.project.worker_config import (
    METHODS,
    Folder,
    HttpRequests,
    UnsupportedFeatureError,
    WorkerConfig,
    parse_worker_config,
)
from containerd_shimkit.errors import ManifestError

VERSION = 'version = "1"\n'
FULL = """\
name = "todos"
version = "1"
[data.kv]
namespace = "todos"
[vars]
PLAIN = "value"
SECRET = "$TOKEN"
[[folders]]
from = "./_libs/x"
to = "/mnt"
[[folders]]
from = 'a\\b'
to = "c"
[features.http_requests]
allowed_hosts = ["example.com"]
allowed_methods = ["GET"]
allow_http = true
[features.wasi_nn]
allowed_backends = []
"""


def parse(text: str) -> WorkerConfig:
    return parse_worker_config(text, "/todos.toml", {"TOKEN": "abc"})


def test_all_fields() -> None:
    config = parse(FULL)
    assert config == WorkerConfig(
        name="todos",
        version="1",
        namespace="todos",
        vars={"PLAIN": "value", "SECRET": "abc"},
        from_environment=frozenset({"SECRET"}),
        folders=(
            Folder("./_libs/x", "/mnt", "/todos.toml:8:1: folders[0]"),
            Folder("a/b", "c", "/todos.toml:11:1: folders[1]"),
        ),
        http=HttpRequests(("example.com",), ("GET",), allow_http=True),
    )
    assert "abc" not in repr(config)


def test_no_fields() -> None:
    config = parse(VERSION)
    assert config == WorkerConfig(version="1")
    assert config.http == HttpRequests((), METHODS, allow_http=False)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "/todos.toml:1:1: required field `version` is missing"),
        ("version = 1", "/todos.toml:1:1: version = 1: must be a string, not an integer"),
        ("version = ", "/todos.toml:1:"),
        (VERSION + "[data]\nkv = 1", "/todos.toml:3:1: data.kv = 1: must be a table"),
        (VERSION + "[data.kv]", "data.kv: required field `namespace` is missing"),
        (VERSION + '[data.kv]\nnamespace = ""', "must have 1 to 200 characters"),
        (VERSION + "[vars]\nA = 1", "/todos.toml:3:1: vars.A = 1: must be a string"),
        (VERSION + '[vars]\n"A=B" = ""', "a variable's name must not be empty or hold `=`"),
        (VERSION + '[[folders]]\nfrom = "a"', "folders[0]: required field `to` is missing"),
        (VERSION + 'folders = "a"', 'folders = "a": must be an array of tables [[folders]]'),
        (VERSION + "[features.http_requests]\nallow_http = 1", "must be a boolean"),
        (VERSION + "[features.http_requests]\nallowed_hosts = [1]", "must be a string"),
    ],
)
def test_fault(text: str, reason: str) -> None:
    with pytest.raises(ManifestError) as caught:
        parse(text)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ("colour = 1\n", "/todos.toml:2:1: colour: unknown field, of no effect; known fields: "),
        ("[vers]\n", "/todos.toml:2:1: vers: unknown field, of no effect; did you mean `vars`?"),
        ("[data.cache]\n", "data.cache: unknown field"),
        ("[features.http_request]\n", "did you mean `http_requests`?"),
        ("[features.http_requests]\nhosts = []\n", "features.http_requests.hosts: unknown field"),
        ('[[folders]]\nto = "a"\nmode = 1\n', "folders[0].mode: unknown field"),
    ],
)
def test_unknown_field(text: str, warning: str) -> None:
    (found,) = parse(VERSION + text).warnings
    assert warning in found


@pytest.mark.parametrize(
    "field",
    [
        'allowed_backends = ["openvino"]',
        '[[features.wasi_nn.preload_models]]\nbackend = "openvino"',
    ],
)
def test_machine_learning_is_refused(field: str) -> None:
    with pytest.raises(UnsupportedFeatureError, match=r"^/todos.toml:2:\d+: features.wasi_nn: "):
        parse(f"{VERSION}[features.wasi_nn]\n{field}")

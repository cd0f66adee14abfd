"""Real guests run statements of SQLite databases, by the interface of each generation."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from containerd_shimkit.testing.http import fetch

VERSIONS = ["v1", "v1.5", "v2"]
MANIFEST = """
spin_manifest_version = 2
[application]
name = "test"
[[trigger.http]]
route = "/..."
component = "sqlite"
[component.sqlite]
source = "sqlite.wasm"
sqlite_databases = ["default", "memory"]
"""
CONFIG = """
[sqlite_database.memory]
type = "spin"
[sqlite_database.other]
type = "spin"
path = "other.db"
"""
TEN_MEGABYTES = 10 << 20
FOREVER = "WITH RECURSIVE c (x) AS (SELECT 1 UNION ALL SELECT x + 1 FROM c) SELECT max(x) FROM c"


@pytest.fixture
def app(image: Any) -> Any:
    image.component("sqlite", "/...")
    image.manifest(MANIFEST)
    (image.root / "runtime-config.toml").write_text(CONFIG)
    return image


async def ask(port: int, version: str, *lines: str) -> list[str]:
    """Have one guest make calls, whose fields ``|`` separates here; return what it says of each."""
    body = "\n".join(line.replace("|", "\t") for line in lines).encode()
    response = await fetch(port, f"/{version}", method="POST", body=body)
    assert response.status == 200, response
    return response.text.splitlines()


def check(app: Any, version: str, calls: list[tuple[str, str]]) -> None:
    """Have one guest make calls, and compare what it is answered."""

    async def main(port: int) -> None:
        answers = await ask(port, version, *(line for line, _ in calls))
        assert list(zip((line for line, _ in calls), answers, strict=True)) == calls

    app.run(main)


def told(size: int) -> str:
    """Return what the guest says of its own value of ``size`` bytes."""
    value = (b"abcdefghijklmnopqrstuvwxyz" * (size // 26 + 1))[:size]
    return f"{size} bytes, sum {sum(byte * place for place, byte in enumerate(value, 1))}"


@pytest.mark.parametrize("label", ["default", "memory"])
@pytest.mark.parametrize("version", VERSIONS)
def test_every_function(app: Any, version: str, label: str) -> None:
    value = told(TEN_MEGABYTES)
    check(
        app,
        version,
        [
            (f"open|{label}", "0"),
            ("execute|CREATE TABLE t (a INTEGER PRIMARY KEY, b)", ""),
            ("execute|INSERT INTO t (b) VALUES (?), (?), (?)|real:0.1|text:schön|blob:\x01é", ""),
            ("execute|SELECT last_insert_rowid() AS x", "x; 0:3"),
            (
                "execute|SELECT a, b AS c FROM t",
                "a, c; 0:1, 1:0.10000000000000001; 0:2, 2:'schön'; 0:3, 3:x01c3a9",
            ),
            ("execute|SELECT ? AS x|integer:-9223372036854775808", "x; 0:-9223372036854775808"),
            ("execute|SELECT ? AS x, 1|null:", "x, 1; 4, 0:1"),
            ("execute|SELECT b FROM t WHERE a > 99", "b"),
            (f"execute|SELECT ? AS x|text:@{TEN_MEGABYTES}", f"x; 2:{value}"),
            (f"execute|SELECT ? AS x|blob:@{TEN_MEGABYTES}", f"x; 3:{value}"),
            ("close", "ok"),
            ("execute|SELECT 1", "error 2"),
        ],
    )
    assert (app.root / ".spin" / "sqlite_db.db").exists() is (label == "default")


@pytest.mark.parametrize("version", VERSIONS)
def test_errors(app: Any, version: str, caplog: pytest.LogCaptureFixture) -> None:
    check(
        app,
        version,
        [
            ("open|other", "error 1"),
            ("open|nothing", "error 1"),
            ("open|default", "0"),
            ("execute|selec", "error 4 database 'default': near \"selec\": syntax error"),
            ("execute|SELECT * FROM missing", "error 4 database 'default': no such table: missing"),
            (
                "execute|SELECT 1; SELECT 2",
                "error 4 database 'default': You can only execute one statement at a time.",
            ),
            ("execute|ATTACH '/other.db' AS x", "error 4 database 'default': not authorized"),
            ("execute|PRAGMA max_page_count = 5", "max_page_count; 0:5"),
            ("execute|CREATE TABLE t (a)", ""),
            ("execute|INSERT INTO t VALUES (zeroblob(100000))", "error 3"),
            ("use|77", "ok"),
            ("execute|SELECT 1", "error 2"),
            ("fill|default", "error 3 after 255"),
        ],
    )
    assert 'sqlite_databases = ["other"] in the manifest' in caplog.text


@pytest.mark.parametrize("version", VERSIONS)
def test_a_transaction_ends_with_its_guest(app: Any, version: str) -> None:
    async def main(port: int) -> None:
        await ask(port, version, "open|default", "execute|CREATE TABLE t (a)")
        insert = "execute|INSERT INTO t VALUES (1)"
        await ask(port, version, "open|default", "execute|BEGIN IMMEDIATE", insert, insert)
        await ask(port, version, "open|default", "execute|BEGIN", insert, "execute|COMMIT")
        answers = await ask(port, version, "open|default", "execute|SELECT a FROM t")
        assert answers[1] == "a; 0:1"

    app.run(main)


@pytest.mark.parametrize("label", ["default", "memory"])
def test_request_that_takes_too_long(app: Any, label: str) -> None:
    """Its statement is interrupted: what it locked is free again."""

    async def main(port: int) -> None:
        await ask(port, "v1", f"open|{label}", "execute|CREATE TABLE t (a)")
        body = f"open\t{label}\nexecute\tBEGIN IMMEDIATE\nexecute\t{FOREVER}".encode()
        for _ in range(3):
            assert (await fetch(port, "/v1", method="POST", body=body)).status == 504
            answers = await ask(port, "v1", f"open|{label}", "execute|INSERT INTO t VALUES (1)")
            assert answers == ["0", ""]

    app.run(main, SPIN_HTTP_REQUEST_TIMEOUT_SECONDS="0.3")


def test_many_guests_at_once(app: Any) -> None:
    async def main(port: int) -> None:
        await ask(port, "v1", "open|default", "execute|CREATE TABLE t (a)")

        async def insert(number: int) -> None:
            answers = await ask(
                port, "v1", "open|default", f"execute|INSERT INTO t VALUES (?)|integer:{number}"
            )
            assert answers == ["0", ""]

        await asyncio.gather(*map(insert, range(200)))
        answers = await ask(port, "v1", "open|default", "execute|SELECT count(*) AS n FROM t")
        assert answers[1] == "n; 0:200"

    app.run(main, SPIN_MAX_INSTANCE_COUNT="200")

"""PostgreSQL, MySQL and SQLite through containerd: what libraries need is there in a container."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from containerd_shimkit.oci.archive import ImageFile
from containerd_shimkit.testing.apps import App, Node
from containerd_shimkit.testing.servers.mariadb import mysql_url, running_mariadb
from containerd_shimkit.testing.servers.postgres import postgres_url, running_postgres
from containerd_shimkit.testing.servers.process import Server
from containerd_shimkit.testing.servers.tls import Authority, certificate_authority

pytestmark = [pytest.mark.root, pytest.mark.containerd]

GUESTS = Path(__file__).parents[1] / "guests"
MANIFEST = """\
spin_manifest_version = 2
[application]
name = "data"
[[trigger.http]]
route = "/..."
component = "databases"
[[trigger.http]]
route = "/sqlite/..."
component = "sqlite"
[component.databases]
source = "databases.wasm"
allowed_outbound_hosts = [
    "postgres://127.0.0.0/8:*", "postgres://localhost:*", "mysql://127.0.0.0/8:*",
    "mysql://localhost:*",
]
[component.sqlite]
source = "sqlite.wasm"
sqlite_databases = ["default", "memory"]
"""
CONFIG = """\
[sqlite_database.memory]
type = "spin"
"""
TEN_MEGABYTES = 10 << 20


@pytest.fixture(scope="module")
def authority() -> Iterator[Authority]:
    with certificate_authority() as made:
        yield made


@pytest.fixture(scope="module")
def postgres(authority: Authority) -> Iterator[Server]:
    made = authority.issue("postgres", "DNS:localhost")
    with running_postgres(certificate=(made.cert, made.key), localhost=True) as running:
        yield running


@pytest.fixture(scope="module")
def mariadb(authority: Authority) -> Iterator[Server]:
    made = authority.issue("mariadb", "DNS:localhost")
    with running_mariadb(certificate=(made.cert, made.key), localhost=True) as running:
        yield running


@pytest.fixture
def image(node: Node, authority: Authority) -> str:
    names = ("databases.wasm", "sqlite.wasm")
    guests = [ImageFile(name, (GUESTS / name).read_bytes()) for name in names]
    config = ImageFile("runtime-config.toml", CONFIG.encode())
    bundle = ImageFile("etc/ssl/certs/ca-certificates.crt", authority.cert.read_bytes())
    return node.image([ImageFile("spin.toml", MANIFEST.encode()), config, bundle, *guests])


def ask(app: App, path: str, *lines: str, address: str = "") -> list[str]:
    """Have one guest make calls, whose fields ``|`` separates here; return what it says of each."""
    body = "\n".join(line.replace("|", "\t") for line in lines).encode()
    answer = app.get(path, method="POST", headers={"address": address}, body=body)
    assert answer.status == 200, answer
    return answer.text.splitlines()


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_postgres(node: Node, image: str, postgres: Server, version: str) -> None:
    app = node.run(image)
    path = f"/pg/{version}"
    named = postgres_url(postgres).replace(postgres.host, "localhost")
    ssl = "query|SELECT ssl AS x FROM pg_stat_ssl WHERE pid = pg_backend_pid()"
    for address, by_tls in ((f"{named}?sslmode=require", "true"), (named, "true")):
        assert ask(app, path, ssl, address=address) == [f"x 0; 0:{by_tls}"]
    plain = postgres_url(postgres, options="?sslmode=disable")
    answers = ask(
        *(app, path, ssl, f"query|SELECT length($1::bytea) AS x|binary:@{TEN_MEGABYTES}"),
        *("query|SELECT now() AS x, 'a'::name AS y, '{1}'::int[] AS z", "query|SELECT 1/0"),
        "execute|CREATE TYPE pg_temp.mood AS ENUM ('low')",
        "query|SELECT 'low'::pg_temp.mood AS x, '1 day'::interval AS y, 1.5 AS z",
        address=plain,
    )
    failed = "error 2" if version == "v2" else "error 3"
    assert answers == [
        *("x 0; 0:false", f"x 3; 3:{TEN_MEGABYTES}", "x 13, y 13, z 13; 14, 14, 14"),
        *(f"{failed} division by zero (SQLSTATE 22012)", "0", "x 13, y 13, z 13; 14, 14, 14"),
    ]
    refused = postgres_url(postgres, password="s3cret", options="?sslmode=disable")
    assert "password authentication failed" in ask(app, path, "query|SELECT 1", address=refused)[0]
    denied = ask(app, path, "query|SELECT 1", address="postgres://u:s3cret@db.example/d")[0]
    assert 'needs allowed_outbound_hosts = ["postgres://db.example"]' in denied
    assert app.stop() == 0
    assert "s3cret" not in app.log


@pytest.mark.parametrize("version", ["v1", "v2"])
def test_mysql(node: Node, image: str, mariadb: Server, version: str) -> None:
    app = node.run(image)
    path, address = f"/mysql/{version}", mysql_url(mariadb)
    answers = ask(
        *(app, path, f"query|SELECT LENGTH(?) AS x|binary:@{TEN_MEGABYTES}"),
        *("execute|CREATE TEMPORARY TABLE t (a FLOAT, b TEXT CHARACTER SET latin1)",),
        "execute|INSERT INTO t VALUES (?, ?)|floating32:0.1|str:schön",
        *("query|SELECT * FROM t", "query|SELECT * FROM missing"),
        address=address,
    )
    assert answers[:4] == [
        *(f"x 3; 3:{TEN_MEGABYTES}", "ok", "ok", "a 9, b 11; 9:0.100000001, 11:'schön'"),
    ]
    assert answers[4].endswith("Table 'app.missing' doesn't exist (error 1146)")
    refused = ask(app, path, "query|SELECT 1", address=mysql_url(mariadb, password="s3cret"))
    assert "Access denied" in refused[0]
    named = f"{address.replace(mariadb.host, 'localhost')}?ssl-mode=REQUIRED"
    answers = ask(
        *(app, path, f"query|SELECT LENGTH(?) AS x|binary:@{TEN_MEGABYTES}"),
        *(
            "query|SELECT REPEAT('x', 10000000) IS NULL AS x",
            "query|SHOW STATUS LIKE 'Ssl_version'",
        ),
        address=named,
    )
    assert answers[:2] == [f"x 3; 3:{TEN_MEGABYTES}", "x 3; 3:0"]
    assert answers[2].endswith("11:'TLSv1.3'")
    # The certificate is for another name.
    refused = ask(app, path, "query|SELECT 1", address=f"{address}?ssl-mode=REQUIRED")
    assert "certificate verify failed" in refused[0]
    assert app.stop() == 0
    assert "s3cret" not in app.log


def test_sqlite_in_a_volume(node: Node, image: str, tmp_path: Path) -> None:
    mount = ["--mount", f"type=bind,src={tmp_path},dst=/.spin,options=rbind:rw"]
    write = ("open|default", "execute|CREATE TABLE t (a)", "execute|INSERT INTO t VALUES (1)")
    app = node.run(image, *mount)
    assert ask(app, "/sqlite/v1", *write) == ["0", "", ""]
    assert app.stop() == 0
    assert [file.name for file in tmp_path.iterdir()] == ["sqlite_db.db"]
    app = node.run(image, *mount, env={"SPIN_HTTP_WORKERS": "1"})
    answers = ask(
        *(app, "/sqlite/v1", "open|default", "execute|SELECT a FROM t"),
        *("execute|SELECT :a AS x, @b AS y|integer:1|text:b", "execute|VACUUM"),
        f"execute|SELECT length(?) AS x|blob:@{TEN_MEGABYTES}",
        "execute|ATTACH '/other.db' AS other",
    )
    assert answers == [
        *("0", "a; 0:1", "x, y; 0:1, 2:'b'", "", f"x; 0:{TEN_MEGABYTES}"),
        "error 4 database 'default': not authorized",
    ]
    assert ask(app, "/sqlite/v1", "open|memory", "execute|CREATE TABLE t (a)") == ["0", ""]
    assert ask(app, "/sqlite/v1", "open|memory", "execute|SELECT a FROM t") == ["0", "a"]
    assert app.stop() == 0


def test_sqlite_where_nothing_can_be_written(node: Node, image: str) -> None:
    app = node.run(image, "--read-only")
    answers = ask(app, "/sqlite/v1", "open|default", "execute|SELECT 1")
    assert answers[1].startswith("error 4 database 'default': cannot open /.spin/sqlite_db.db: ")
    assert "Read-only file system; mount a volume" in answers[1]
    assert app.stop() == 0

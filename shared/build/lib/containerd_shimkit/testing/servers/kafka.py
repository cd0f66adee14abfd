"""Apache Kafka's broker, one that is its own controller, which `make kafka` fetches."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import pytest

from containerd_shimkit.testing.apps import free_address
from containerd_shimkit.testing.servers.process import Server, need_program, running_server
from containerd_shimkit.testing.servers.tls import Certificate

_JARS: Final = Path(".cache/kafka/lib")
_START_SECONDS: Final = 60.0
_CLUSTER: Final = "tests-of-the-shims-AAA"
# A small heap, and compiled quickly rather than well.
_JAVA: Final = ("-Xmx192m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1")
_LOG_LEVEL: Final = "-Dorg.slf4j.simpleLogger.defaultLogLevel=warn"
_OWN: Final = "BROKER:PLAINTEXT,CONTROLLER:PLAINTEXT"
_SETTINGS: Final = {
    "process.roles": "broker,controller",
    "node.id": "1",
    "controller.listener.names": "CONTROLLER",
    # Every topic of its own is on this one broker, and a group need not wait for more members.
    "offsets.topic.replication.factor": "1",
    "offsets.topic.num.partitions": "1",
    "share.coordinator.state.topic.replication.factor": "1",
    "transaction.state.log.replication.factor": "1",
    "group.initial.rebalance.delay.ms": "0",
    "group.min.session.timeout.ms": "100",
    "log.cleaner.dedupe.buffer.size": str(2 << 20),
    "num.network.threads": "1",
    "num.io.threads": "2",
}


@contextmanager
def running_kafka(
    *,
    users: Mapping[str, str] | None = None,
    mechanism: str = "PLAIN",
    certificate: Certificate | None = None,
    address: tuple[str, int] | None = None,
    **settings: str,
) -> Iterator[Server]:
    """A broker, which lets everybody in unless there are users.

    users: passwords by name.  mechanism: ``PLAIN`` or one of ``SCRAM``.
    certificate: for connections by TLS.  address: see ``running_server``.
    settings: as in ``server.properties``, with ``_`` in place of dots.
    """
    java = need_program("java", "default-jre-headless")
    jars = next((d / _JARS for d in Path(__file__).parents if (d / _JARS).exists()), None)
    if jars is None:
        pytest.skip("needs kafka: make kafka")
    controller, broker = ("{}:{}".format(*free_address()) for _ in range(2))
    scram = []
    if users and mechanism.startswith("SCRAM"):
        for name, password in users.items():
            scram += ["--add-scram", f"{mechanism}=[name={name},password={password}]"]
    protocol = f"{'SASL_' if users else ''}{'SSL' if certificate else 'PLAINTEXT'}"

    def prepare(server: Server) -> None:
        lines = _SETTINGS | {
            # What it says to itself needs no login.
            "listeners": f"CLIENTS://{server.address},BROKER://{broker},CONTROLLER://{controller}",
            "listener.security.protocol.map": f"CLIENTS:{protocol},{_OWN}",
            "inter.broker.listener.name": "BROKER",
            "controller.quorum.voters": f"1@{controller}",
            "log.dirs": str(server.directory / "data"),
        }
        if users:
            lines |= _logins(users, mechanism)
        if certificate is not None:
            chain = certificate.key.read_bytes() + certificate.cert.read_bytes()
            lines["ssl.keystore.type"] = "PEM"
            lines["ssl.keystore.location"] = str(server.write_file("server.pem", chain))
        lines |= {name.replace("_", "."): value for name, value in settings.items()}
        text = "".join(f"{name}={value}\n" for name, value in lines.items())
        (server.directory / "server.properties").write_text(text)
        done = subprocess.run(
            run(server, "kafka.tools.StorageTool", "format", "-t", _CLUSTER, *scram, "-c"),
            capture_output=True,
            text=True,
            timeout=_START_SECONDS,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    def run(server: Server, *words: str) -> Sequence[str]:
        properties = str(server.directory / "server.properties")
        return [java, *_JAVA, _LOG_LEVEL, "-cp", f"{jars}/*", *words, properties]

    def command(server: Server) -> Sequence[str]:
        return run(server, "kafka.Kafka")

    with running_server(command, prepare, address, as_nobody=False) as server:
        yield server


def _logins(users: Mapping[str, str], mechanism: str) -> dict[str, str]:
    module = "plain.Plain" if mechanism == "PLAIN" else "scram.Scram"
    module = f"org.apache.kafka.common.security.{module}LoginModule required"
    known = "".join(f' user_{name}="{password}"' for name, password in users.items())
    return {
        "sasl.enabled.mechanisms": mechanism,
        f"listener.name.clients.{mechanism.lower()}.sasl.jaas.config": f"{module}{known};",
    }

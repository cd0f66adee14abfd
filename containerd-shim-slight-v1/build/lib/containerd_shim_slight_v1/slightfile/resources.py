"""The resources that a slightfile may name: a family of the interface, and who provides it.

Source: SpiderLightning 0.5 crates/slightfile/src/resource.rs, 0.1 and 0.2 for what they called
``pubsub``; the configs are those that crates/*/src/implementors ask for.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

KEYVALUE: Final = "keyvalue"
MESSAGING: Final = "messaging"
CONFIGS: Final = "configs"
DISTRIBUTED_LOCKING: Final = "distributed_locking"
SQL: Final = "sql"
BLOBSTORE: Final = "blobstore"
HTTP: Final = "http"
HTTP_CLIENT: Final = "http-client"


@dataclass(frozen=True, slots=True)
class Resource:
    """A resource by its current name."""

    family: str
    backend: str
    """Empty for families that have no choice of it."""
    configs: tuple[tuple[str, ...], ...] = ()
    """What it cannot do without; of names that stand together one is enough."""

    @property
    def name(self) -> str:
        return f"{self.family}.{self.backend}" if self.backend else self.family


_AZURE_STORAGE: Final = (("AZURE_STORAGE_ACCOUNT",), ("AZURE_STORAGE_KEY",))
_AWS: Final = (
    ("AWS_ACCESS_KEY_ID",),
    ("AWS_SECRET_ACCESS_KEY",),
    ("AWS_REGION", "AWS_DEFAULT_REGION"),
)
# Where the protocol has no login, upstream wants CAK_SASL_* all the same.
_KAFKA: Final = (("CAK_ENDPOINT",), ("CAK_SECURITY_PROTOCOL",), ("CAK_GROUP_ID",))
_SERVICE_BUS: Final = (
    ("AZURE_SERVICE_BUS_NAMESPACE",),
    ("AZURE_POLICY_NAME",),
    ("AZURE_POLICY_KEY",),
)

_CURRENT: Final = (
    Resource(KEYVALUE, "filesystem"),
    Resource(KEYVALUE, "redis", (("REDIS_ADDRESS",),)),
    Resource(KEYVALUE, "azblob", _AZURE_STORAGE),
    Resource(KEYVALUE, "awsdynamodb", _AWS),
    Resource(KEYVALUE, "dapr"),
    Resource(MESSAGING, "filesystem"),
    Resource(MESSAGING, "mosquitto", (("MOSQUITTO_HOST",), ("MOSQUITTO_PORT",))),
    Resource(MESSAGING, "nats", (("NATS_CREDS", "NATS_URL"),)),
    Resource(MESSAGING, "confluent_apache_kafka", _KAFKA),
    Resource(MESSAGING, "azsbus", _SERVICE_BUS),
    Resource(CONFIGS, "envvars"),
    Resource(CONFIGS, "usersecrets"),
    Resource(CONFIGS, "azapp"),
    Resource(DISTRIBUTED_LOCKING, "etcd", (("ETCD_ENDPOINT",),)),
    Resource(SQL, "postgres", (("POSTGRES_CONNECTION_URL",),)),
    Resource(BLOBSTORE, "aws_s3", _AWS),
    Resource(BLOBSTORE, "azblob", _AZURE_STORAGE),
    Resource(HTTP, ""),
    Resource(HTTP_CLIENT, ""),
)
_OLDER: Final = {
    "kv.filesystem": "keyvalue.filesystem",
    "kv.redis": "keyvalue.redis",
    "kv.azblob": "keyvalue.azblob",
    "kv.awsdynamodb": "keyvalue.awsdynamodb",
    "mq.filesystem": "messaging.filesystem",
    "mq.azsbus": "messaging.azsbus",
    "pubsub.mosquitto": "messaging.mosquitto",
    "pubsub.confluent_apache_kafka": "messaging.confluent_apache_kafka",
    "lockd.etcd": "distributed_locking.etcd",
}

RESOURCES: Final[dict[str, Resource]] = {resource.name: resource for resource in _CURRENT}
RESOURCES.update({older: RESOURCES[current] for older, current in _OLDER.items()})
"""By every name that a slightfile may write."""

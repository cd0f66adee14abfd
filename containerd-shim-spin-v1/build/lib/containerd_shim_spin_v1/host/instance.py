"""What one guest has of the host: who it is, where it may connect to, and what it has open."""

from __future__ import annotations

from containerd_shim_spin_v1.host.key_value import KeyValueSession
from containerd_shim_spin_v1.host.mqtt import MqttSession
from containerd_shim_spin_v1.host.mysql import MysqlSession
from containerd_shim_spin_v1.host.postgres import PostgresSession
from containerd_shim_spin_v1.host.redis import RedisSession
from containerd_shim_spin_v1.host.services import Services
from containerd_shim_spin_v1.host.sqlite import SqliteSession
from containerd_shim_spin_v1.manifest.model import Component
from containerd_shim_spin_v1.outbound.access import OutboundAccess


class Instance:
    """Made for each guest, and closed after it."""

    __slots__ = (
        *("_key_value", "_mqtt", "_mysql", "_postgres", "_redis", "_sqlite"),
        *("access", "component", "depth", "services"),
    )

    def __init__(
        self, component: Component, access: OutboundAccess, services: Services, depth: int = 0
    ) -> None:
        """depth: how many guests wait for this one, by requests that stay in the app."""
        self.component = component
        self.access = access
        self.services = services
        self.depth = depth
        self._key_value: KeyValueSession | None = None
        self._mqtt: MqttSession | None = None
        self._mysql: MysqlSession | None = None
        self._postgres: PostgresSession | None = None
        self._redis: RedisSession | None = None
        self._sqlite: SqliteSession | None = None

    @property
    def component_id(self) -> str:
        return self.component.id

    @property
    def key_value(self) -> KeyValueSession:
        if self._key_value is None:
            self._key_value = self.services.key_value.session(self.component.key_value_stores)
        return self._key_value

    @property
    def mqtt(self) -> MqttSession:
        if self._mqtt is None:
            self._mqtt = MqttSession(self.services.mqtt, self.access)
        return self._mqtt

    @property
    def mysql(self) -> MysqlSession:
        if self._mysql is None:
            self._mysql = self.services.mysql.session(self.access)
        return self._mysql

    @property
    def postgres(self) -> PostgresSession:
        if self._postgres is None:
            self._postgres = self.services.postgres.session(self.access)
        return self._postgres

    @property
    def redis(self) -> RedisSession:
        if self._redis is None:
            self._redis = self.services.redis.session(self.access)
        return self._redis

    @property
    def sqlite(self) -> SqliteSession:
        if self._sqlite is None:
            self._sqlite = self.services.sqlite.session(self.component.sqlite_databases)
        return self._sqlite

    @property
    def has_open(self) -> bool:
        """Whether there is anything to close."""
        sessions = (self._mysql, self._postgres, self._redis, self._sqlite)
        return any(session is not None and session.has_open for session in sessions)

    async def close(self) -> None:
        """Close what the guest left open."""
        for session in (self._mysql, self._postgres, self._redis, self._sqlite):
            if session is not None:
                await session.close()

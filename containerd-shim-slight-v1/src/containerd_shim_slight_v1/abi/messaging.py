"""``messaging``, in SpiderLightning 0.1 and 0.2 two interfaces: ``pubsub`` and ``mq``.

Source: SpiderLightning 0.5 wit/messaging.wit, 0.2 wit/pubsub.wit and wit/mq.wit.
"""

from __future__ import annotations

from typing import Final

from containerd_shim_slight_v1.abi.imports import (
    OLD_ERROR,
    Function,
    Interface,
    error_of,
    old_error,
)
from containerd_shim_slight_v1.capabilities.instance import Instance
from containerd_shim_slight_v1.capabilities.messaging.base import (
    MessagingBackend,
    MessagingError,
    OldSubscriber,
    OpenPublisher,
    OpenQueue,
    OpenSubscriber,
)
from containerd_shim_slight_v1.slightfile.resources import MESSAGING
from containerd_shimkit.wasm.canonical import BYTES, STRING, U32, Result, Variant

_ERROR: Final = Variant(
    payload_too_large=STRING,
    queue_or_topic_not_found=STRING,
    insufficient_permissions=STRING,
    service_unavailable=STRING,
    delivery_failed=STRING,
    connection_lost=STRING,
    unsupported_message_format=STRING,
    unexpected_error=STRING,
)


def _backend(instance: Instance, name: str) -> MessagingBackend:
    backend: MessagingBackend = instance.services.backend(MESSAGING, name)
    return backend


async def _open_publisher(instance: Instance, name: str) -> int:
    return instance.handles.add(OpenPublisher(_backend(instance, name), name), name)


async def _publish(instance: Instance, handle: int, message: bytes, topic: str) -> None:
    publisher = instance.handles.get(handle, OpenPublisher)
    await publisher.backend.publish(publisher.name, topic, message)


async def _open_subscriber(instance: Instance, name: str) -> int:
    return instance.handles.add(OpenSubscriber(_backend(instance, name), name), name)


async def _subscribe(instance: Instance, handle: int, topic: str) -> str:
    subscriber = instance.handles.get(handle, OpenSubscriber)
    return await subscriber.backend.subscribe(subscriber.name, topic)


async def _receive(instance: Instance, handle: int, token: str) -> bytes:
    subscriber = instance.handles.get(handle, OpenSubscriber)
    return await subscriber.receive_by(token)


async def _open_old_subscriber(instance: Instance, name: str) -> int:
    return instance.handles.add(OldSubscriber(_backend(instance, name), name), name)


async def _old_subscribe(instance: Instance, handle: int, topic: str) -> None:
    await instance.handles.get(handle, OldSubscriber).subscribe(topic)


async def _old_receive(instance: Instance, handle: int) -> bytes:
    return await instance.handles.get(handle, OldSubscriber).receive()


async def _open_queue(instance: Instance, name: str) -> int:
    return instance.handles.add(OpenQueue(_backend(instance, name), name), name)


async def _send(instance: Instance, handle: int, message: bytes) -> None:
    queue = instance.handles.get(handle, OpenQueue)
    await queue.backend.send(queue.name, message)


async def _take(instance: Instance, handle: int) -> bytes:
    queue = instance.handles.get(handle, OpenQueue)
    return await queue.receive()


def _publisher_functions(error: Variant) -> list[Function]:
    return [
        Function("pub::open", [STRING], Result(U32, error), _open_publisher),
        Function("pub::publish", [U32, BYTES, STRING], Result(None, error), _publish),
    ]


RESOURCES: Final = ("pub", "sub", "mq")
INTERFACES: Final = (
    Interface(
        "messaging",
        [
            *_publisher_functions(_ERROR),
            Function("sub::open", [STRING], Result(U32, _ERROR), _open_subscriber),
            Function("sub::subscribe", [U32, STRING], Result(STRING, _ERROR), _subscribe),
            Function("sub::receive", [U32, STRING], Result(BYTES, _ERROR), _receive),
        ],
        error_of(MessagingError),
    ),
    Interface(
        "pubsub",
        [
            *_publisher_functions(OLD_ERROR),
            Function("sub::open", [STRING], Result(U32, OLD_ERROR), _open_old_subscriber),
            Function("sub::subscribe", [U32, STRING], Result(None, OLD_ERROR), _old_subscribe),
            Function("sub::receive", [U32], Result(BYTES, OLD_ERROR), _old_receive),
        ],
        old_error,
    ),
    Interface(
        "mq",
        [
            Function("mq::open", [STRING], Result(U32, OLD_ERROR), _open_queue),
            Function("mq::send", [U32, BYTES], Result(None, OLD_ERROR), _send),
            Function("mq::receive", [U32], Result(BYTES, OLD_ERROR), _take),
        ],
        old_error,
    ),
)

"""The bundle: the directory containerd makes for a container, with its ``config.json``."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from containerd_shimkit.errors import BundleError
from containerd_shimkit.oci.spec import Spec, parse_spec

MAX_CONFIG_BYTES = 16 << 20  # 16 MiB; a large real one has some 100 KiB
SANDBOX_ID = "io.kubernetes.cri.sandbox-id"
CONTAINER_TYPE = "io.kubernetes.cri.container-type"


@dataclass(frozen=True, slots=True)
class Bundle:
    """A bundle whose ``config.json`` has been read and checked."""

    path: Path
    rootfs: Path
    """Where the rootfs is or will be mounted."""
    spec: Spec

    @classmethod
    def load(cls, path: Path | str) -> Bundle:
        """Read the bundle at ``path``. Raises BundleError."""
        path = Path(path)
        spec = parse_spec(load_config(path), str(path / "config.json"))
        return cls(path, path / spec.root.path, spec)

    @property
    def group(self) -> str | None:
        """What the shim serves as one: the pod, by its id; None outside Kubernetes."""
        return self.spec.annotations.get(SANDBOX_ID) or None

    @property
    def is_pause(self) -> bool:
        """Whether this is the pause container of a pod, whose namespaces the others join."""
        return self.spec.annotations.get(CONTAINER_TYPE) == "sandbox"


def load_config(path: Path) -> object:
    """Return the decoded ``config.json`` of the bundle at ``path``. Raises BundleError."""
    config = path / "config.json"
    try:
        with open(config, "rb") as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as exc:
        raise BundleError(f"{config}: {exc.strerror}") from exc
    if len(raw) > MAX_CONFIG_BYTES:
        raise BundleError(f"{config}: larger than {MAX_CONFIG_BYTES} bytes")
    try:
        data: object = json.loads(raw)
    except (ValueError, RecursionError) as exc:
        raise BundleError(f"{config}: not JSON: {exc}") from exc
    return data

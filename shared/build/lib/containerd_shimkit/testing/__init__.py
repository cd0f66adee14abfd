"""The public test kit: what tests of the kit and of every shim are built with.

Image archives are built by ``containerd_shimkit.oci.archive``, which is no test code.
"""

from containerd_shimkit.oci.archive import ImageFile, write_image_archive
from containerd_shimkit.testing.bundles import BundleBuilder
from containerd_shimkit.testing.clean import CleanProcess, CleanProcessError, in_clean_process
from containerd_shimkit.testing.containerd import Containerd, ContainerdError
from containerd_shimkit.testing.leftovers import Machine, assert_nothing_left, snapshot_machine
from containerd_shimkit.testing.publisher import MemoryPublisher
from containerd_shimkit.testing.service import RunningService, running_service
from containerd_shimkit.testing.stub_engine import STUB_KIND, StubEngine

__all__ = [
    "STUB_KIND",
    "BundleBuilder",
    "CleanProcess",
    "CleanProcessError",
    "Containerd",
    "ContainerdError",
    "ImageFile",
    "Machine",
    "MemoryPublisher",
    "RunningService",
    "StubEngine",
    "assert_nothing_left",
    "in_clean_process",
    "running_service",
    "snapshot_machine",
    "write_image_archive",
]

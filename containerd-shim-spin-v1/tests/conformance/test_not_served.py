"""Apps whose manifests are right, and that are not served: the start says why."""

from __future__ import annotations

from typing import Any

import pytest

from containerd_shimkit.errors import ManifestError
from spin_rules.manifest_v2 import NOT_SERVED_V2
from spin_rules.manifests import Fault

Image = Any  # of conftest.py


@pytest.mark.parametrize("fault", NOT_SERVED_V2, ids=str)
def test_not_served(fault: Fault, image: Image) -> None:
    image.manifest(fault.text)
    with pytest.raises(ManifestError) as caught:
        image.prepare()
    assert fault.message in str(caught.value)

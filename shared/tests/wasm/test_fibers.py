"""What is promised of guests that wait: they cost memory, and no thread."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

SCRIPT = Path(__file__).parents[2] / "tools" / "bench" / "fibers.py"


def test_thousand_requests_with_two_hundred_waiting(
    record_property: Callable[[str, object], None],
) -> None:
    """Each waits 100 ms in an import. How long it takes is for the bench; the bound is generous."""
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    print(figures)
    record_property("seconds", figures["seconds"])
    assert figures["requests"] == figures["succeeded"] == 1000
    assert figures["most_waiting"] == 200
    assert figures["threads"] == 1
    assert 0.5 <= figures["seconds"] < 10

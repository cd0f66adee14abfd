"""The rules as clients and components see them, in this process."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from spin_rules.exchange import App
from spin_rules.served import SAMPLE, SERVED

Image = Any  # of conftest.py
GUESTS = Path(__file__).parents[1] / "guests"


@pytest.mark.parametrize("app", SERVED, ids=lambda app: app.name)
def test_served(app: App, image: Image, caplog: pytest.LogCaptureFixture) -> None:
    for guest in app.guests:
        shutil.copyfile(GUESTS / f"{guest}.wasm", image.root / f"{guest}.wasm")
    image.manifest(app.manifest)

    async def main(port: int) -> None:
        await app.check("127.0.0.1", port)

    image.run(main)
    for words in app.logged:
        assert words in caplog.text
    assert "Traceback" not in caplog.text


def test_names_tell_apps_apart() -> None:
    names = [app.name for app in SERVED]
    assert len(set(names)) == len(names)


def test_each_table_has_a_sample() -> None:
    assert 10 <= len(SAMPLE) <= 30

"""Using a backend where nothing can be imported any more, as in a container."""

from __future__ import annotations

import asyncio
import json
import sys
import textwrap
from typing import Final

HTTP: Final = 'specversion = "0.2"\n[[capability]]\nresource = "http"\nname = "api"\n'
_SECONDS: Final = 100.0
# What a container has is what the zygote has, and what the slightfile asks for.
_PROGRAM: Final = """\
import json, sys
from containerd_shim_slight_v1 import KIND
from containerd_shimkit.cli import warm_up
from containerd_shimkit.importing import end_imports
KIND.import_engine()
warm_up(KIND)
import asyncio, uvloop
from containerd_shim_slight_v1.capabilities.backends import load_backends
from containerd_shim_slight_v1.capabilities.context import AppContext
from containerd_shim_slight_v1.capabilities.errors import CapabilityError
from containerd_shim_slight_v1.capabilities.services import Services
from containerd_shim_slight_v1.capabilities.sql.base import Statement
from containerd_shim_slight_v1.slightfile.reader import parse_slightfile

class Sought:
    names = []
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        cls.names.append(name)

async def call(services):
{body}

async def main():
    services = Services(AppContext(slightfile, environment, None), classes)
    try:
        async with asyncio.timeout({seconds}):
            print(json.dumps(await call(services)))
    finally:
        await services.close()

slightfile = parse_slightfile(sys.argv[1])
environment = json.loads(sys.argv[2])
classes = load_backends(slightfile)
end_imports()
sys.meta_path.append(Sought)
with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
    runner.run(main())
print(json.dumps(Sought.names))
"""


def capability(resource: str, **configs: str) -> str:
    """Return a slightfile with one capability, named ``it``."""
    lines = "".join(f"{name} = {json.dumps(value)}\n" for name, value in configs.items())
    return (
        f'{HTTP}[[capability]]\nresource = "{resource}"\nname = "it"\n[capability.configs]\n{lines}'
    )


async def use_without_imports(slightfile: str, body: str, **environment: str) -> object:
    """Return what ``body``, the body of a coroutine function, returns.

    slightfile: its content.  body: has ``services``.  environment: the container's.
    Nothing may be looked for in vain, either.
    """
    program = _PROGRAM.format(body=textwrap.indent(body, " " * 4), seconds=_SECONDS / 2)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", program, slightfile, json.dumps(environment)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(_SECONDS):
            output, errors = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, errors.decode()
    result, sought = map(json.loads, output.splitlines())
    assert sought == [], "imported too late"
    return result

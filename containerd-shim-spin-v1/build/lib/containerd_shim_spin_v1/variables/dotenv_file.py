"""The ``.env`` file: variables in the form of a shell's assignments."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Final

from dotenv.parser import parse_stream
from dotenv.variables import parse_variables

from containerd_shimkit.errors import ManifestError

NAME: Final = ".env"


def parse_dotenv(text: str, env: Mapping[str, str], file: str = NAME) -> dict[str, str]:
    """Return the assignments of ``text``.

    ``${NAME}`` stands for an assignment above, or what ``env`` has. A name without ``=`` has no
    value and is left out.  Raises ManifestError naming the line that is no assignment.
    """
    values: dict[str, str] = {}
    for binding in parse_stream(io.StringIO(text)):
        if binding.error:
            raise ManifestError(f"{file}:{binding.original.line}: is no NAME=value")
        if binding.key is not None and binding.value is not None:
            known = {**env, **values}
            atoms = parse_variables(binding.value)
            values[binding.key] = "".join(atom.resolve(known) for atom in atoms)
    return values

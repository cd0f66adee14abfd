"""Parameters of statements: ``$1``, as the interface says, or ``?``, as upstream has it."""

from __future__ import annotations

import re
from typing import Final

# What holds no parameters: strings, names in quotes, and comments. What does not end reaches to the
# statement's end: so the time is in proportion to its length, whatever is in it.
_TOKEN: Final = re.compile(
    r"""
      [eE]'(?:[^'\\]++|\\.|'')*+(?:'|\Z)
    | '[^']*+(?:'|\Z)  # one with a quote in it is two of these
    | "[^"]*+(?:"|\Z)
    | [^\W\d][\w$]*+  # a name may have a dollar in it
    | \$(?P<tag>[A-Za-z_]{,63})\$ .*? (?:\$(?P=tag)\$|\Z)
    | --[^\n]*+
    | /\*.*?(?:\*/|\Z)
    | (?P<number>\$[0-9]+)
    | (?P<mark>\?)
    """,
    re.VERBOSE | re.DOTALL,
)


def numbered(text: str) -> str:
    """Return a statement with ``$1`` for the first ``?``, and so on; one that has ``$1`` as it is.

    So ``?`` can be an operator, too.
    """
    if "?" not in text or any(found["number"] for found in _TOKEN.finditer(text)):
        return text
    count = 0

    def replace(found: re.Match[str]) -> str:
        nonlocal count
        if found["mark"] is None:
            return found[0]
        count += 1
        return f"${count}"

    return _TOKEN.sub(replace, text)

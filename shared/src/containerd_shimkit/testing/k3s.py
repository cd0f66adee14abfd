"""What k3s makes of a template of containerd's configuration.

Source: k3s pkg/agent/templates and pkg/agent/containerd; Go's text/template.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from containerd_shimkit.node.places import BASE_TEMPLATE

_CONDITION = re.compile(
    r'^\{\{ if not \(index \.ExtraRuntimes "(?P<handler>[^"]+)"\)\.RuntimeType \}\}\n'
    r"(?P<tables>.*?)^\{\{ end \}\}$",
    re.M | re.S,
)


def render_k3s_template(
    template: str, base: str, found: Mapping[str, str] = MappingProxyType({}), version: int = 2
) -> str:
    """Return containerd's configuration.

    base: what k3s writes without a template.  found: types, by handler, of the runtimes
    that it has found on its PATH: it registers them in the base.
    """
    plugin = "io.containerd.cri.v1.runtime" if version >= 3 else "io.containerd.grpc.v1.cri"
    for handler, runtime_type in found.items():
        table = f'plugins."{plugin}".containerd.runtimes."{handler}"'
        base += f'\n[{table}]\n  runtime_type = "{runtime_type}"\n'
        base += f'[{table}.options]\n  BinaryName = "/usr/local/bin/containerd-shim-{handler}-v1"\n'

    def chosen(condition: re.Match[str]) -> str:
        return "" if condition["handler"] in found else condition["tables"]

    rendered = _CONDITION.sub(chosen, template).replace(BASE_TEMPLATE, base)
    assert "{{" not in rendered, f"not rendered: {rendered}"
    return rendered

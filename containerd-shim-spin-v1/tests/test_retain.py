from __future__ import annotations

import pytest

from containerd_shim_spin_v1.manifest.reader import parse_manifest
from containerd_shim_spin_v1.manifest.retain import retain_components
from containerd_shimkit.environment import SettingError
from containerd_shimkit.errors import ExitCode

MANIFEST = """\
spin_manifest_version = 2
[application]
name = "app"
[[trigger.http]]
route = "/one"
component = "one"
[[trigger.redis]]
address = "redis://r"
channel = "c"
component = "one"
[[trigger.http]]
route = "/two"
component = "two"
[[trigger.http]]
route = "/static"
static_response = { body = "x" }
[component.one]
source = "one.wasm"
allowed_outbound_hosts = HOSTS
[component.two]
source = "two.wasm"
"""


def retained(wanted: str, hosts: str = "[]") -> tuple[list[str], list[str]]:
    app = retain_components(parse_manifest(MANIFEST.replace("HOSTS", hosts)), wanted)
    return [c.id for c in app.components], [t.id for t in app.triggers]


@pytest.mark.parametrize(
    ("wanted", "components", "triggers"),
    [
        ("one", ["one"], ["one-http-trigger", "one-redis-trigger"]),
        ("two", ["two"], ["two-http-trigger"]),
        (" two , ,one,", ["one", "two"],
         ["one-http-trigger", "two-http-trigger", "one-redis-trigger"]),
    ],
)  # fmt: skip
def test_components_and_their_triggers_stay(
    wanted: str, components: list[str], triggers: list[str]
) -> None:
    found = retained(wanted)
    assert (found[0], sorted(found[1])) == (components, sorted(triggers))


@pytest.mark.parametrize("wanted", ["", " , "])
def test_no_id_keeps_all(wanted: str) -> None:
    components, triggers = retained(wanted)
    assert (len(components), len(triggers)) == (2, 4)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ("tow", "SPIN_COMPONENTS_TO_RETAIN: the app has no component 'tow'; did you mean `two`?"),
        ("one,zzz", "the app has no component 'zzz'; known components: one, two"),
    ],
)
def test_unknown_id_names_the_known(wanted: str, message: str) -> None:
    with pytest.raises(SettingError) as caught:
        retained(wanted)
    assert message in str(caught.value)
    assert caught.value.exit_code == ExitCode.MANIFEST


@pytest.mark.parametrize(
    ("hosts", "message"),
    [
        ('["http://two.spin.internal"]', "component 'one' may call 'two' (two.spin.internal)"),
        ('["https://a", "*://two.spin.internal:*"]', "component 'one' may call 'two'"),
        ('["http://*.spin.internal"]', "component 'one' may call every other"),
    ],
)
def test_component_that_calls_a_dropped_one_is_refused(hosts: str, message: str) -> None:
    with pytest.raises(SettingError) as caught:
        retained("one", hosts)
    assert message in str(caught.value)
    assert retained("one,two", hosts)[0] == ["one", "two"]


@pytest.mark.parametrize("hosts", ['["http://one.spin.internal"]', '["http://*:*"]'])
def test_component_that_calls_none_of_the_dropped(hosts: str) -> None:
    assert retained("one", hosts)[0] == ["one"]

"""Every app that is asked over HTTP."""

from __future__ import annotations

from typing import Final

from spin_rules.answers import ANSWER_APPS
from spin_rules.request_data import FORGED_MATCH_APP, REFUSED_APP, TOLD, own_hosts_app, passed_app
from spin_rules.routes_v1 import ROUTES_V1
from spin_rules.routes_v2 import ROUTES_V2
from spin_rules.wagi import WAGI_APPS

SERVED: Final = (
    *(routing.app(1) for routing in ROUTES_V1),
    *(routing.app(2) for routing in ROUTES_V2),
    *(told.app(wagi=wagi) for told in TOLD for wagi in (False, True)),
    *(passed_app(wagi=wagi) for wagi in (False, True)),
    FORGED_MATCH_APP,
    *(own_hosts_app(wagi=wagi) for wagi in (False, True)),
    REFUSED_APP,
    *ANSWER_APPS,
    *WAGI_APPS,
)

SAMPLE: Final = tuple(app for app in SERVED if app.sample)

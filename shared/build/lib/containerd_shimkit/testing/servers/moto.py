"""moto's server, which does what DynamoDB, S3 and IAM of Amazon do, signatures included."""

from __future__ import annotations

import json
import re
import sys
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from urllib.parse import urlencode

import pytest

from containerd_shimkit.testing.servers.process import Server, running_server


@dataclass(frozen=True, slots=True)
class AwsUser:
    """Who may do everything."""

    server: Server
    key_id: str
    secret: str

    @property
    def url(self) -> str:
        return f"http://{self.server.address}"


@contextmanager
def running_moto() -> Iterator[AwsUser]:
    """A server that checks who asks."""
    if find_spec("moto") is None or find_spec("flask") is None:
        pytest.skip("needs moto: make setup")

    def command(server: Server) -> Sequence[str]:
        return [
            *("/usr/bin/env", "INITIAL_NO_AUTH_ACTION_COUNT=3"),  # those below
            *(sys.executable, "-m", "moto.server"),
            *("-H", server.host, "-p", str(server.port)),
        ]

    with running_server(command, as_nobody=False) as server:
        policy = {
            "Version": "2012-10-17",
            "Statement": [{"Effect": "Allow", "Action": "*", "Resource": "*"}],
        }
        _ask(server, Action="CreateUser", UserName="test")
        _ask(
            server,
            Action="PutUserPolicy",
            UserName="test",
            PolicyName="all",
            PolicyDocument=json.dumps(policy),
        )
        made = _ask(server, Action="CreateAccessKey", UserName="test")
        found = re.search(
            "<AccessKeyId>(.*)</AccessKeyId>.*<SecretAccessKey>(.*)</SecretAccessKey>", made, re.S
        )
        assert found is not None, made
        yield AwsUser(server, found[1], found[2])


def _ask(server: Server, **form: str) -> str:
    """Ask IAM, which does not check who asks so far."""
    request = urllib.request.Request(
        f"http://{server.address}/",
        data=urlencode({"Version": "2010-05-08", **form}).encode(),
        headers={
            "Authorization": "AWS4-HMAC-SHA256 Credential=none/20250101/us-east-1/iam/aws4_request",
            "Content-Type": "application/x-www-form-urlencoded",
        },
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        return str(answer.read().decode())

"""The tool that people look into nodes with, against pods of the shim."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from containerd_shimkit.testing.apps import free_address
from containerd_shimkit.testing.cri import Cri
from containerd_shimkit.testing.pods import PodImages, Web, listen_on

pytestmark = [pytest.mark.root, pytest.mark.containerd]


@pytest.fixture
def crictl(cri: Cri, pytestconfig: pytest.Config) -> Callable[..., str]:
    """Run crictl against the daemon; return what it printed."""
    program = pytestconfig.rootpath / ".cache" / "containerd-2.4" / "crictl"
    if not program.exists():
        pytest.skip(f"needs {program}: make containerd")
    endpoint = f"unix://{cri.daemon.address}"

    def run(*arguments: str) -> str:
        command = [str(program), "--runtime-endpoint", endpoint, "--timeout", "20s", *arguments]
        result = subprocess.run(command, capture_output=True, text=True, timeout=60)
        assert result.returncode == 0, result.stderr
        return result.stdout.strip()

    return run


def test_crictl_sees_a_pod_through(
    cri: Cri, images: PodImages, crictl: Callable[..., str], tmp_path: Path
) -> None:
    address, parent = free_address(), f"/{cri.daemon.namespace}/by-crictl"
    variables = [{"key": key, "value": value} for key, value in listen_on(address).items()]
    pod_file, web_file = tmp_path / "pod.json", tmp_path / "web.json"
    pod_config = {
        "metadata": {"name": "by-crictl", "uid": "by-crictl", "namespace": "default"},
        "log_directory": str(tmp_path),
        "linux": {
            "cgroup_parent": parent,
            "security_context": {"namespace_options": {"network": 2}},
        },
    }
    web_config = {
        "metadata": {"name": "web"},
        "image": {"image": images.probe},
        "envs": variables,
        "log_path": "web.log",
        "linux": {"resources": {"oom_score_adj": 1000}},
    }
    pod_file.write_text(json.dumps(pod_config))
    web_file.write_text(json.dumps(web_config))

    pod = cri.adopt(crictl("runp", "--runtime", "spin", str(pod_file)), parent)
    web_id = crictl("create", pod.id, str(web_file), str(pod_file))
    crictl("start", web_id)
    web = Web(web_id, address)
    assert web.get("/stdout?text=for-crictl")[0] == 200
    assert "by-crictl" in crictl("pods")
    assert "Running" in crictl("ps")
    (stats,) = json.loads(crictl("stats", "-o", "json", web_id))["stats"]
    assert int(stats["memory"]["workingSetBytes"]["value"]) > 1 << 20
    assert json.loads(crictl("inspect", web_id))["status"]["state"] == "CONTAINER_RUNNING"
    assert "for-crictl" in crictl("logs", web_id)
    crictl("stop", "--timeout", "20", web_id)
    assert json.loads(crictl("inspect", web_id))["status"]["exitCode"] == 0
    crictl("rm", web_id)
    crictl("stopp", pod.id)
    crictl("rmp", pod.id)
    assert crictl("pods", "-q") == ""
    cri.remove_pod(pod)  # kubelet's part: the cgroup above

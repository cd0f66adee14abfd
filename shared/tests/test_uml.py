"""What this host cannot show: a machine with cgroup version 2 only, and one under systemd.

The tests inside are those of this project; one that is skipped there fails the test out here.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from containerd_shimkit.testing.containerd import SYSTEM_PATH
from containerd_shimkit.testing.fixtures import containerd_program
from containerd_shimkit.testing.leftovers import find_processes
from containerd_shimkit.testing.uml import Report, Uml, UmlError, missing_packages, unfit_processor

pytestmark = [pytest.mark.root, pytest.mark.timeout(1260)]

SECONDS = 1200.0
"""The deadline of tests in a machine, which need a tenth of it where nothing runs beside them."""

KERNEL_TESTS = [
    "shared/tests/linux",
    "shared/tests/test_device_rules.py",
    "shared/tests/test_sandbox.py",
    "shared/tests/task/test_oom.py",
    "shared/tests/task/test_runc.py",
]
SYSTEMD_TESTS = [
    "shared/tests/linux/test_cgroups_systemd.py",
    "shared/tests/task/test_systemd_cgroup.py",
]
SYSTEMD_POD_TESTS = [
    "test_cri.py::test_apps_and_sidecar_share_one_shim",
    "test_cri.py::test_cgroups_are_in_the_pods",
    "test_cri.py::test_limits_are_the_containers",
    "test_cri.py::test_stats_have_memory_and_cpu",
    "test_cri.py::test_stopped_pod_ends_all_its_containers",
    "test_cri.py::test_shim_killed",
    "test_pods.py::test_container_beyond_its_memory_is_oom_killed",
]
POD_TESTS = [
    *SYSTEMD_POD_TESTS,
    "test_cri.py::test_volumes_are_seen_by_a_guest",
    "test_cri.py::test_one_container_restarts_while_others_run",
    "test_cri.py::test_stop_lets_a_request_end",
    "test_cri.py::test_pod_outlives_containerd",
    "test_cri.py::test_pod_has_an_address_and_a_network_of_its_own",
    "test_pods.py::test_pod_from_its_run_to_its_removal",
    "test_pods.py::test_container_beyond_the_memory_of_its_pod_is_oom_killed",
    "test_pods.py::test_sidecar_beyond_its_memory_is_oom_killed",
    "test_pods.py::test_cpu_limit_holds",
]
APPARMOR_POD_TESTS = [
    "test_cri.py::test_engine_serves_in_the_default_apparmor_profile",
    "test_cri.py::test_apps_and_sidecar_share_one_shim",
]
LSM_TESTS = "shared/tests/linux/test_lsm.py"
LSM_PROGRAMS = {"apparmor": "apparmor_parser", "selinux": "secilc"}


def machine(
    directory: Path, root: Path, *, systemd: bool = False, kernel: Sequence[str] = ()
) -> Uml:
    if missing := missing_packages(systemd=systemd):
        pytest.skip(f"needs a kernel of its own: apt-get install {' '.join(missing)}")
    if reason := unfit_processor():
        pytest.skip(reason)
    return Uml(directory, root, systemd=systemd, kernel=kernel)


def assert_all_passed(report: Report) -> None:
    """The message of a failure is the end of what pytest printed inside."""
    tail = report.output[-16000:]
    assert report.exit_code == 0, tail
    assert report.skipped == [], tail
    assert report.passed > 0, tail


def pod_tests(names: list[str], version: str) -> list[str]:
    return [f"containerd-shim-spin-v1/tests/e2e/{name}[{version}]" for name in names]


# The rig


@pytest.mark.parametrize(
    ("flags", "fits"), [("fpu avx2 avx512f", True), ("avx amx_tile pku", False)]
)
def test_processors_whose_registers_do_not_fit(tmp_path: Path, flags: str, fits: bool) -> None:
    (tmp_path / "cpuinfo").write_text(f"model name\t: a\nflags\t\t: {flags}\n")
    reason = unfit_processor(tmp_path / "cpuinfo")
    assert reason is None if fits else reason is not None and "AMX" in reason


def test_exit_code_and_output_come_out(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    uml = machine(tmp_path, pytestconfig.rootpath)
    script = "pwd; stat -fc %T /sys/fs/cgroup; echo $WORD >&2; touch /etc/new; exit 7"
    with tempfile.TemporaryFile() as output:
        assert uml.run(["sh", "-c", script], output, seconds=60, env={"WORD": "a b"}) == 7
        output.seek(0)
        text = output.read().decode()
    assert text == f"{pytestconfig.rootpath}\ncgroup2fs\na b\n"
    assert not Path("/etc/new").exists()


def test_what_pytest_says_inside_comes_out(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    uml = machine(tmp_path, pytestconfig.rootpath)
    (tmp_path / "test_inner.py").write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "def test_bad(): assert 'this' == 'that'\n"
        "def test_left_out(): pytest.skip('needs something')\n"
    )
    report = uml.run_pytest(["/run/uml/test_inner.py"], seconds=60)
    assert report.exit_code == 1
    assert "AssertionError: assert 'this' == 'that'" in report.output
    assert report.passed == 1
    assert report.skipped == ["test_inner::test_left_out: needs something"]


def test_machine_ends_with_its_deadline(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    uml = machine(tmp_path, pytestconfig.rootpath)
    with tempfile.TemporaryFile() as output, pytest.raises(UmlError, match=r"did not end in 8 s"):
        uml.run(["sleep", "1000"], output, seconds=8)
    assert find_processes([str(tmp_path)]) == []


def test_machine_that_panics_is_told_so(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    uml = machine(tmp_path, pytestconfig.rootpath)
    with tempfile.TemporaryFile() as output, pytest.raises(UmlError, match="Kernel panic"):
        uml.run(["sh", "-c", "echo c >/proc/sysrq-trigger"], output, seconds=60)
    assert find_processes([str(tmp_path)]) == []


# Tests inside


def test_kernel_tests_on_cgroup_version_2(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    uml = machine(tmp_path, pytestconfig.rootpath)
    elsewhere = [LSM_TESTS, *SYSTEMD_TESTS]
    arguments = [*KERNEL_TESTS, *(f"--ignore={file}" for file in elsewhere)]
    assert_all_passed(uml.run_pytest(arguments, seconds=SECONDS))


@pytest.mark.parametrize("kernel", [[], ["cgroups=hybrid"]], ids=["version-2", "hybrid"])
def test_scopes_of_systemd(tmp_path: Path, pytestconfig: pytest.Config, kernel: list[str]) -> None:
    uml = machine(tmp_path, pytestconfig.rootpath, systemd=True, kernel=kernel)
    assert_all_passed(uml.run_pytest(SYSTEMD_TESTS, seconds=SECONDS))


@pytest.mark.parametrize("module", ["apparmor", "selinux"])
def test_security_module(tmp_path: Path, pytestconfig: pytest.Config, module: str) -> None:
    """Profiles and labels, on a kernel where they count."""
    program = LSM_PROGRAMS[module]
    if shutil.which(program, path=SYSTEM_PATH) is None:
        pytest.skip(f"needs {program}: apt-get install apparmor secilc")
    uml = machine(tmp_path, pytestconfig.rootpath, kernel=[f"lsm={module}"])
    assert_all_passed(uml.run_pytest([LSM_TESTS, "-k", module], seconds=SECONDS))


@pytest.mark.containerd
def test_pods_with_apparmor(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    """On a node with AppArmor every container of a pod is in a profile."""
    if shutil.which("apparmor_parser", path=SYSTEM_PATH) is None:
        pytest.skip("needs apparmor_parser: apt-get install apparmor")
    uml = machine(tmp_path, pytestconfig.rootpath, kernel=["lsm=apparmor"])
    containerd_program("1.6", pytestconfig.rootpath)  # skips
    assert_all_passed(uml.run_pytest(pod_tests(APPARMOR_POD_TESTS, "1.6"), seconds=SECONDS))


@pytest.mark.containerd
@pytest.mark.parametrize("version", ["1.6", "2.4"])
def test_pods_on_cgroup_version_2(
    tmp_path: Path, pytestconfig: pytest.Config, version: str
) -> None:
    uml = machine(tmp_path, pytestconfig.rootpath)
    containerd_program(version, pytestconfig.rootpath)  # skips
    assert_all_passed(uml.run_pytest(pod_tests(POD_TESTS, version), seconds=SECONDS))


@pytest.mark.containerd
@pytest.mark.parametrize("version", ["1.6", "2.4"])
def test_pods_with_the_systemd_driver(
    tmp_path: Path, pytestconfig: pytest.Config, version: str
) -> None:
    uml = machine(tmp_path, pytestconfig.rootpath, systemd=True)
    containerd_program(version, pytestconfig.rootpath)  # skips
    tests = pod_tests(SYSTEMD_POD_TESTS, version)
    driver = {"TEST_CGROUP_DRIVER": "systemd"}
    assert_all_passed(uml.run_pytest(tests, seconds=SECONDS, env=driver))

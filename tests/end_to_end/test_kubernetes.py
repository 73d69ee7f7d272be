"""The pods of docs/howto/orchestrators.md: valid by Kubernetes' own schemas, and run in containers with the limits that they name."""

from __future__ import annotations

import contextlib
import copy
import json
import os
import shutil
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from tests.support import pods
from tests.support.pages import blocks
from tests.support.ports import free_port
from tests.support.waiting import until

needs_containers = pytest.mark.skipif(
    os.geteuid() != 0 or not all(map(shutil.which, ("bwrap", "mmdebstrap"))),
    reason="bubblewrap or mmdebstrap is not installed, or this is not root",
)
pytestmark = pytest.mark.nightly
SCHEMAS = "kubernetes-validate==1.37.0"  # has Kubernetes' schemas as files
JOB, DAEMON = (
    YAML(typ="safe").load(block.text) for block in blocks("howto/orchestrators.md") if block.language == "yaml"
)
TOKEN = "0123456789abcdef0123456789abcdef"


@pytest.fixture(scope="module")
def schemas(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("schemas")
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "-q",
        "--disable-pip-version-check",
        "--target",
        str(folder),
        SCHEMAS,
    ]
    subprocess.run(pip, check=True, timeout=300)
    return folder


def is_valid(schemas: Path, value: Any) -> bool:
    program = (
        "import json, sys, kubernetes_validate\nvalue = json.load(sys.stdin)\n"
        "for version in ('1.25', '1.37'):\n    kubernetes_validate.validate(value, version, strict=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={**os.environ, "PYTHONPATH": str(schemas)}, input=json.dumps(value), capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0 or "ValidationError" in done.stderr, done.stderr
    return done.returncode == 0


@pytest.mark.parametrize("value", [JOB, DAEMON], ids=["job", "daemon"])
def test_kubernetes_s_own_schemas(value: Any, schemas: Path) -> None:
    assert is_valid(schemas, value)
    for change in ("unknown", "type"):
        wrong = copy.deepcopy(value)
        (container,) = wrong["spec"]["template"]["spec"]["containers"]
        container["securityContext"] |= {"readOnly": True} if change == "unknown" else {"runAsUser": "root"}
        assert not is_valid(schemas, wrong)  # the checker itself


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pods.make_root(tmp_path_factory.mktemp("container"))


@needs_containers
@pytest.mark.vm
def test_the_job_boots_in_its_container(root: Path, demo: str, tmp_path: Path) -> None:
    """An artifact in a layout stands for that of the registry."""
    for name in ("store", "credentials"):
        (tmp_path / name).mkdir()
    (tmp_path / "store").chmod(0o777)  # as an emptyDir is
    pod = copy.deepcopy(JOB["spec"]["template"]["spec"])
    (container,) = pod["containers"]
    words = container["command"]
    script = "id -u; grep -c . /proc/mounts >/dev/null && echo in a machine; exit 7"
    container["command"] = [*words[:-1], "--entrypoint", "sh", "oci:/mnt:1", "--", "-c", script]
    volumes = {name: tmp_path / name for name in ("store", "credentials")}
    command = pods.command(pod, root, volumes, "--ro-bind", demo.removeprefix("oci:").removesuffix(":1"), "/mnt")
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=300)
    assert done.returncode == 7, done.stderr
    assert done.stdout == "10001\nin a machine\n"
    assert os.listdir(tmp_path / "store/sandboxes") == []
    for check in ("touch /written", "test -e /dev/kvm", "test -r /token"):  # the container itself
        container["command"] = ["sh", "-c", f"grep -q 'CapBnd:.*0000000000000000' /proc/self/status && ! {check}"]
        assert subprocess.run(pods.command(pod, root, volumes), capture_output=True, timeout=60).returncode == 0


@needs_containers
def test_the_daemon_serves(root: Path, tmp_path: Path) -> None:
    for name in ("store", "token"):
        (tmp_path / name).mkdir()
    os.chown(tmp_path / "store", 10001, 0)
    (tmp_path / "token/token").write_text(TOKEN)
    os.chown(tmp_path / "token/token", 0, 10001)  # as fsGroup has it
    (tmp_path / "token/token").chmod(0o440)
    pod = copy.deepcopy(DAEMON["spec"]["template"]["spec"])
    (container,) = pod["containers"]
    port = str(free_port())
    container["command"] = [word.replace("0.0.0.0:5001", f"127.0.0.1:{port}") for word in container["command"]]
    volumes = {name: tmp_path / name for name in ("store", "token")}
    with subprocess.Popen(pods.command(pod, root, volumes), stderr=subprocess.PIPE, text=True) as process:
        try:

            def status(token: str) -> int:
                request = urllib.request.Request(
                    f"http://127.0.0.1:{port}/v2/", headers={"Authorization": f"Bearer {token}"}
                )
                try:
                    with urllib.request.urlopen(request, timeout=10) as answer:
                        return int(answer.status)
                except urllib.error.HTTPError as err:
                    return err.code

            def answers() -> bool:
                assert process.poll() is None, process.stderr and process.stderr.read()
                with contextlib.suppress(urllib.error.URLError):
                    return status(TOKEN) == 200
                return False

            until(answers, 60)
            assert status(TOKEN[::-1]) == 401
        finally:
            process.kill()

"""A push that would be refused fails before anything is built, and says which host refused which credentials."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from imagetool.targets.rights import check_push
from rootdisk.errors import RegistryError
from rootdisk.oci.reference import parse_reference
from tests.support.commands import run
from tests.support.layouts import write_layout
from tests.support.registry import needs_registry, run_registry
from tests.support.tars import END, file


def log_in(folder: Path, registry: str, password: str) -> None:
    folder.mkdir(exist_ok=True)
    auth = base64.b64encode(f"ann:{password}".encode()).decode()
    (folder / "config.json").write_text(json.dumps({"auths": {registry: {"auth": auth}}}))


@needs_registry
def test_a_push_that_would_be_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOCKER_CONFIG", str(tmp_path / "docker"))
    write_layout(tmp_path / "layout", "t", [file(b"f", b"1") + END])
    with run_registry(tmp_path / "registry", password=("ann", "right-password")) as registry:
        place = parse_reference(f"{registry.name}/team/app")
        (tmp_path / "images.toml").write_text(
            f'[image.app]\nsource = "oci:layout:t"\nkernel = "none"\nsize = "64MiB"\nplain_http = true\npublish = "{place.place}"\n'
        )
        for password in ("", "wrong-password"):
            if password:
                log_in(tmp_path / "docker", registry.name, password)
            with pytest.raises(RegistryError) as failed:
                check_push([place], registry.options)
            assert failed.value.status == 401
            assert registry.name in str(failed.value)
            done = run("imagetool", "doit", "build", cwd=tmp_path, DOCKER_CONFIG=str(tmp_path / "docker"))
            said = done.stdout + done.stderr
            assert done.returncode == 1
            assert registry.name in said
            assert f"runner login {registry.name}" in said
            assert (str(tmp_path / "docker/config.json") in said) == bool(password)
            assert "wrong-password" not in said
            assert not (tmp_path / "cache/disks").exists()
        log_in(tmp_path / "docker", registry.name, "right-password")
        check_push([place, parse_reference(f"oci:{tmp_path}/out")], registry.options)
        done = run("imagetool", "doit", "build", cwd=tmp_path, DOCKER_CONFIG=str(tmp_path / "docker"))
        assert done.returncode == 0, done.stdout + done.stderr

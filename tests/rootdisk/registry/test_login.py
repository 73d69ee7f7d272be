"""login and logout: what docker would find, and nothing else of its file changed."""

from __future__ import annotations

import base64
import json
import os
import stat
from pathlib import Path

import pytest

from rootdisk.errors import BadInput, RegistryError
from rootdisk.oci.repository import RegistryOptions
from rootdisk.registry import login
from rootdisk.registry.credentials import Credentials, find_credentials
from runner.cli import main
from tests.support.registry import QuietHandler, be_nobody, serve

ANN = Credentials("ann", "s€cret:1")


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    be_nobody(monkeypatch, tmp_path)
    monkeypatch.setenv("ROOTDISK_STORE", str(tmp_path / "store"))


def test_saved_as_docker_does() -> None:
    path = login.config_path()
    login.save("registry.example:5000", ANN)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    config = json.loads(path.read_text())
    auth = base64.b64encode("ann:s€cret:1".encode()).decode()
    assert config == {"auths": {"registry.example:5000": {"auth": auth}}}
    path.write_text(json.dumps({**config, "HttpHeaders": {"X": "y"}}))
    login.save("docker.io", ANN)
    config = json.loads(path.read_text())
    assert config["HttpHeaders"] == {"X": "y"}
    assert set(config["auths"]) == {"registry.example:5000", "https://index.docker.io/v1/"}
    saved = ANN._replace(where=str(path))
    assert find_credentials("registry.example:5000", "a/b") == saved
    assert login.remove("registry.example:5000")
    assert find_credentials("registry.example:5000", "a/b") is None
    assert find_credentials("docker.io", "a/b") == saved
    assert login.remove("registry.example:5000") == ""
    assert not [name for name in os.listdir(path.parent) if name != path.name]


def test_a_damaged_file_stays() -> None:
    path = login.config_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    for text in ("{", "[]", '{"auths": []}'):
        path.write_text(text)
        with pytest.raises(BadInput):
            login.save("registry.example", ANN)
        assert path.read_text() == text


def test_what_go_writes_for_an_empty_map() -> None:
    path = login.config_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"auths": null, "psFormat": "x"}')
    assert login.remove("registry.example") == ""
    login.save("registry.example", ANN)
    assert json.loads(path.read_text())["psFormat"] == "x"
    assert find_credentials("registry.example", "a/b") is not None


def test_helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "bin/docker-credential-keys"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\necho "$1 $(cat)" >> {tmp_path}/said\n[ $1 != fail ]\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    path = login.config_path()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"credHelpers": {"registry.example": "keys", "other.example": "none"}}')
    assert login.save("registry.example", ANN) == "docker-credential-keys"
    assert login.remove("registry.example") == "docker-credential-keys"
    stored, erased = (tmp_path / "said").read_text().splitlines()
    assert json.loads(stored.removeprefix("store ")) == {
        "ServerURL": "registry.example", "Username": "ann", "Secret": "s€cret:1",
    }  # fmt: skip
    assert erased == "erase registry.example"
    assert "s€cret" not in path.read_text()
    with pytest.raises(BadInput, match="docker-credential-none is not installed"):
        login.save("other.example", ANN)
    program.write_text("#!/bin/sh\necho s€cret >&2\nexit 3\n")
    with pytest.raises(RegistryError) as caught:
        login.save("registry.example", ANN)
    assert "s€cret" not in str(caught.value)


def test_a_wrong_password_is_not_saved(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    class Registry(QuietHandler):
        def do_GET(self) -> None:  # noqa: N802
            if self.headers.get("Authorization") == ANN.basic:
                self.send(200, b"{}")
            else:
                self.send(401, b"", WWW_Authenticate="Basic realm=x")

    with serve(Registry) as url:
        name = url.removeprefix("http://")
        login.check(name, ANN, RegistryOptions(plain_http=True))
        with pytest.raises(BadInput, match="refused this name and password"):
            login.check(name, Credentials("ann", "wrong"), RegistryOptions(plain_http=True))
        monkeypatch.setattr("sys.stdin", open(os.devnull))  # noqa: SIM115 - the test's own
        assert main(["login", "--plain-http", "-u", "ann", "--password-stdin", name]) == 125
    assert "the password is empty" in capfd.readouterr().err
    assert not login.config_path().exists()

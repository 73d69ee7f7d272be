"""doctor tells the truth: marks, statuses, and remedies that exist on that distribution."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from runner.cli import main
from runner.commands.boot import _explain_network
from runner.machine import passt
from runner.machine.packages import how_to_install
from runner.sandbox.state import Spec
from runner.store.store import Store
from tests.support.registry import QuietHandler, serve
from tests.support.terminals import read_terminal


@pytest.fixture(autouse=True)
def _own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROOTDISK_STORE", str(tmp_path / "store"))


@pytest.mark.parametrize(
    ("release", "package", "said"),
    [
        ("ID=debian\nVERSION_ID=\"12\"\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n", "virtiofsd", "apt-get install qemu-system-common"),
        ("ID=debian\nVERSION_ID=\"13\"\n", "virtiofsd", "apt-get install virtiofsd"),
        ("ID=debian\nVERSION_ID=\"12\"\nPRETTY_NAME=\"Debian GNU/Linux 12\"\n", "passt", "Debian GNU/Linux 12 has none"),
        ("ID=ubuntu\nID_LIKE=debian\nVERSION_ID=\"24.04\"\n", "passt", "apt-get install passt"),
        ("ID=ubuntu\nID_LIKE=debian\nVERSION_ID=\"22.04\"\n", "virtiofsd", "apt-get install qemu-system-common"),
        ("ID=fedora\nVERSION_ID=42\n", "passt", "dnf install passt"),
        ("ID=opensuse-leap\nID_LIKE=\"suse opensuse\"\n", "passt", "zypper install passt"),
        ("", "passt", "debian: apt-get install passt; fedora: dnf"),
    ],
)  # fmt: skip
def test_remedies(release: str, package: str, said: str, tmp_path: Path) -> None:
    (tmp_path / "os-release").write_text(release)
    assert how_to_install(package, tmp_path / "os-release").startswith(said)


def test_a_registry_that_was_asked_for(capfd: pytest.CaptureFixture[str]) -> None:
    """It counts: status 1 if it does not answer."""

    class Registry(QuietHandler):
        def do_GET(self) -> None:  # noqa: N802
            self.send(200, b"{}")

    with serve(Registry) as url:
        name = url.removeprefix("http://")
        for words in (["doctor", name], ["doctor", "--plain-http", name]):
            main(words)
            line = capfd.readouterr().out.splitlines()[-1]
            assert line.split()[:2] == ["ok", name]
            assert "answers 200 over HTTP" in line
            assert ("use --plain-http" in line) == (len(words) == 2)
    assert main(["doctor", "127.0.0.1:9"]) == 1
    assert "does not answer: connection refused: check" in capfd.readouterr().out


def test_marks_and_json(capfd: pytest.CaptureFixture[str]) -> None:
    main(["doctor", "--json"])
    rows = json.loads(capfd.readouterr().out)
    assert {row["mark"] for row in rows} <= {"ok", "warn", "FAIL"}
    assert {"qemu", "accelerator", "volumes", "network", "store"} <= {row["what"] for row in rows}
    (network,) = (row for row in rows if row["what"] == "network")
    if passt.is_usable():
        assert (network["mark"], network["text"]) == ("ok", "passt")
    else:
        assert network["mark"] == "warn"
        assert "a guest reaches services on this host's 127.0.0.1 at 10.0.2.2" in network["text"]


def test_the_first_boot_says_what_a_guest_reaches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Once, to a terminal; not if there is no network card, or passt."""
    store, said = Store.open(), {}
    spec = Spec("a", "r", f"sha256:{'0' * 64}", "", "", None, None, 1, 64, 1)
    for turn, network in enumerate(("none", "user", "user")):
        ours, theirs = os.openpty()
        with open(theirs, "w") as terminal:
            monkeypatch.setattr("sys.stderr", terminal)
            _explain_network(store, spec._replace(network=network))
        said[turn] = read_terminal(ours).decode()
        os.close(ours)
    if passt.is_usable():
        assert said == {0: "", 1: "", 2: ""}
    else:
        assert "a guest reaches services on this host's 127.0.0.1 at 10.0.2.2: see runner doctor" in said[1]
        assert (said[0], said[2]) == ("", "")


def test_a_store_whose_inside_cannot_be_used(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    main(["ps"])
    folder = tmp_path / "store/disks"
    folder.rmdir()
    folder.write_text("in the way")
    capfd.readouterr()
    assert main(["doctor"]) == 1
    (line,) = (line for line in capfd.readouterr().out.splitlines() if line.startswith("FAIL"))
    assert line.split()[1] == "store"
    if os.geteuid():
        folder.unlink()
        folder.mkdir(mode=0o000)
        assert main(["doctor"]) == 1
        assert "Permission denied" in capfd.readouterr().out

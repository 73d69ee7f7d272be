"""A policy that comes later than what is in the store: what it refuses does not start, whoever starts it.

In place of the machine libkrun's stand-in, as nothing here depends on what runs.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from imagetool.signing.sign import sign
from rootdisk.oci.reference import parse_reference
from rootdisk.oci.repository import RegistryOptions
from tests.support.commands import Runner, run
from tests.support.krun import FakeKrun, needs_compiler
from tests.support.sandboxes import rows
from tests.support.signing import Keys, make_keys, signed_by, write_policy
from tests.support.waiting import until

pytestmark = needs_compiler
PLAIN = ("--backend", "krun", "--accel", "kvm", "--network", "none")


class Host:
    """A user with a store, an artifact of their own, and a place for a policy."""

    def __init__(self, folder: Path, artifact: str, policy: Path) -> None:
        self.runner, self.artifact, self.policy = Runner(folder / "store"), artifact, policy
        self.keys = make_keys(folder / "keys")
        policy.parent.mkdir(parents=True)

    def asks_for(self, *keys: Keys) -> None:
        write_policy(self.policy, signed_by(*keys) if keys else {"type": "reject"})

    def sign(self) -> None:
        sign(parse_reference(self.artifact), self.keys.signer, RegistryOptions())

    def refused(self, *words: str) -> str:
        """A command ends with one line and 125, and nothing is left of what it would have started."""
        before = rows(self.runner, "-a").keys()
        done = self.runner(*words)
        assert done.returncode == 125, done.stderr
        assert done.stderr.count("\n") == 1, done.stderr
        assert done.stdout == ""
        assert rows(self.runner, "-a").keys() == before
        return done.stderr


@pytest.fixture
def host(tmp_path: Path, demo: str, monkeypatch: pytest.MonkeyPatch) -> Host:
    monkeypatch.setenv("ROOTDISK_LIBKRUN", str(FakeKrun.build(tmp_path).path))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    folder = parse_reference(demo).path
    assert folder is not None
    shutil.copytree(folder, tmp_path / "disks", copy_function=shutil.copyfile)
    return Host(tmp_path, f"oci:{tmp_path}/disks:1", tmp_path / "config/rootdisk/policy.json")


@pytest.mark.nightly  # many commands
def test_start(host: Host) -> None:
    """A sandbox that was kept does not start again, before its artifact is signed as the policy asks."""
    host.runner("boot", "--keep", "--name", "kept", *PLAIN, host.artifact)
    assert rows(host.runner, "-a")["kept"]["status"] == 7
    host.asks_for()
    for words in (("start", "kept"), ("start", "--attach", "kept"), ("boot", *PLAIN, host.artifact)):
        assert "the policy says reject" in host.refused(*words)
    host.asks_for(host.keys)
    said = host.refused("start", "kept")
    assert "the store has no signature of" in said
    host.sign()
    assert "the store has no signature of" in host.refused("start", "kept")  # who starts it asks no registry
    pull = said.rpartition(": runner ")[2].strip().strip("()").split()
    assert host.runner(*pull).returncode == 0, pull
    assert host.runner("start", "--attach", "kept").returncode == 7
    host.asks_for(make_keys(host.policy.parent / "other"))
    assert "the store has no signature of" in host.refused("start", "kept")


def test_a_restart(host: Host) -> None:
    """Its keeper, which was there before the policy, starts it no more. Nobody sees a command fail, so it is in the state."""
    done = host.runner("boot", "-d", "--name", "again", "--restart", "always", *PLAIN, host.artifact)
    assert done.returncode == 0, done.stderr
    until(lambda: _starts(host) > 1, 60)
    host.asks_for()
    until(lambda: not rows(host.runner, "-a")["again"]["running"], 60)
    state = json.loads(host.runner("inspect", "again").stdout)
    assert "the policy says reject" in state["error"], state
    began = _starts(host)
    done = host.runner("start", "--all")
    assert done.returncode
    assert "the policy says reject" in done.stderr
    assert _starts(host) == began


def _starts(host: Host) -> int:
    done = host.runner("events", "--json", "--until", "0s", "--since", "1h", "--filter", "sandbox=again")
    return [event["event"] for event in json.loads(done.stdout)].count("started")


@pytest.mark.nightly  # many commands
def test_which_file_counts(host: Host, tmp_path: Path) -> None:
    """The one that the command names, and else the user's own; what does not count is not even read."""
    host.policy.write_text("?")
    assert "policy.json: not JSON" in host.refused("pull", host.artifact)
    accepting = write_policy(tmp_path / "any.json", {"type": "insecureAcceptAnything"})
    assert host.runner("pull", "--policy", str(accepting), host.artifact).returncode == 0
    host.asks_for()
    assert host.runner("pull", "--policy", str(accepting), host.artifact).returncode == 0
    assert "the policy says reject" in host.refused("pull", host.artifact)
    assert "No such file" in host.refused("pull", "--policy", f"{tmp_path}/none.json", host.artifact)
    host.policy.unlink()
    host.policy.parent.rmdir()
    assert host.runner("pull", host.artifact).returncode == 0
    host.policy.parent.write_text("")  # a file in the place of the directory: there is no policy in it
    assert host.runner("pull", host.artifact).returncode == 0
    assert run("runner", "pull", host.artifact, ROOTDISK_STORE=str(host.runner.store), HOME="/").returncode == 0

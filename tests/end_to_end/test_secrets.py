"""Secrets of --secret: where the value is while a sandbox runs, and what its user is told."""

from __future__ import annotations

import ast
import contextlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from tests.support.commands import ROOT, Runner
from tests.support.secrets import TlsHost
from tests.support.stores import contents
from tests.support.waiting import until

GUEST = ROOT / "tests/end_to_end/guest"
VALUE = f"s3cr3t-{os.urandom(16).hex()}"


def echo(head: bytes) -> bytes:
    return b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%b" % (len(head), head)


def times_in_memory(pid: int, data: bytes) -> int:
    """How often a process has `data` in what it can read of its memory."""
    count = 0
    with Path(f"/proc/{pid}/mem").open("rb", 0) as memory:
        for line in Path(f"/proc/{pid}/maps").read_text().splitlines():
            span, rights = line.split()[:2]
            at, end = (int(text, 16) for text in span.split("-"))
            try:
                while rights.startswith("r") and at < end:
                    piece = os.pread(memory.fileno(), min(end - at, 1 << 24), at)
                    if not piece:
                        break
                    count += piece.count(data)
                    at += len(piece)
            except (OSError, OverflowError):  # the kernel's own pages
                continue
    return count


def shown_by() -> list[str]:
    """Processes that show the secret to whoever may look at them in /proc."""
    found = []
    for path in [*Path("/proc").glob("[0-9]*/environ"), *Path("/proc").glob("[0-9]*/cmdline")]:
        with contextlib.suppress(OSError):  # it has ended
            found += [str(path)] if VALUE.encode() in path.read_bytes() else []
    return found


def children(pid: int) -> list[int]:
    found = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return [int(text) for text in found]


@pytest.mark.vm
@pytest.mark.nightly
def test_a_guest_has_a_placeholder_only(runner: Runner, demo: str, tmp_path: Path) -> None:
    """It works at its host; guest, QEMU and files have it nowhere. A start needs its source again."""
    host = TlsHost(tmp_path, echo, names=["secret.test"])
    names = (
        "--add-host",
        "secret.test:127.0.0.1",
        "--add-host",
        "other.test:127.0.0.1",
        "--ca-file",
        str(host.ca_file),
    )
    secret = ("--secret", f"TOKEN=env:ROOTDISK_TEST@secret.test:{host.port}", "--allow", f"other.test:{host.port}")
    boot = ("-d", "--name", "secret", *names, *secret, "-v", f"{GUEST}:/guest:ro", "--entrypoint", "/bin/sleep")
    done = runner("boot", *boot, demo, "1000", ROOTDISK_TEST=VALUE)
    assert done.returncode == 0, done.stderr
    done = runner("exec", "secret", "python3", "/guest/secret.py", "secret.test", str(host.port))
    assert done.returncode == 0, done.stderr
    found = ast.literal_eval(done.stdout)
    assert found["value"].startswith("placeholder-")
    assert len(found["value"]) == len(VALUE)
    assert {"SSL_CERT_FILE", "NODE_EXTRA_CA_CERTS", "GIT_SSL_CAINFO"} <= set(found["variables"])
    assert f"Authorization: Bearer {found['value']}\r\n" in found["answer"]
    assert "SSLCertVerificationError" in found["other"]  # its own certificate: the keeper leaves it alone
    assert found["only"] >= 1
    (seen,) = host.seen
    assert f"Authorization: Bearer {VALUE}".encode() in seen
    keeper = int(json.loads(runner("inspect", "secret").stdout)["pid"])
    assert times_in_memory(keeper, VALUE.encode())  # the search finds it where it is
    assert shown_by() == []
    for pid in children(keeper):
        assert not times_in_memory(pid, VALUE.encode())
    folder = runner.store / "sandboxes" / "secret"
    assert folder.is_dir()
    for path in (path for path in folder.rglob("*") if path.is_file()):
        assert VALUE.encode() not in path.read_bytes(), path

    def told() -> list[dict[str, Any]]:
        rows = json.loads(runner("logs", "--network", "--json", "secret").stdout)
        return [row for row in rows if "secrets" in row]

    (row,) = until(told)
    assert (row["host"], row["secrets"], row["verdict"]) == ("secret.test", ["TOKEN"], "allowed")
    assert runner("stop", "-t", "0", "secret").returncode == 0
    done = runner("start", "secret")
    assert done.returncode == 125
    assert "--secret TOKEN: the variable ROOTDISK_TEST is not set" in done.stderr
    assert done.stderr.count("\n") == 1
    # one from its disk gets the secret only if it is asked for
    assert runner("snapshot", "--without-memory", "secret", "secrets-disk").returncode == 0
    for options, status in ((secret, 0), ((), 1)):
        words = ("--from", "secrets-disk", *options, *names, "--entrypoint", "/usr/bin/printenv", "TOKEN")
        done = runner("boot", *words, ROOTDISK_TEST=VALUE)
        assert (done.returncode, done.stdout[:12]) == (status, "placeholder-" if not status else ""), done.stderr
    for path, content in contents(runner.store):
        assert "disks" in path.parts or VALUE.encode() not in content, path
    assert runner("rm", "-f", "--snapshot", "secrets-disk").returncode == 0
    runner("rm", "-f", "secret")
    host.close()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--secret", "A=B@c.test"), "--secret 'A=B@c.test'"),
        (("--secret", "A=env:ROOTDISK_NONE@c.test"), "the variable ROOTDISK_NONE is not set"),
        (("--secret", "A=file:x@c.test", "-e", "A=1"), "--secret A and -e A"),
        (("--secret", "A=file:x@c.test", "--network", "user"), "--secret and --network user"),
        (("--secret", "A=file:x@c.test", "--secret", "A=file:y@c.test"), "--secret A is there twice"),
        (("--secret", "A=file:x@c.test", "-p", "53:53/udp"), "--publish with /udp and --secret"),
    ],
)
def test_options_that_are_refused(empty_runner: Runner, options: tuple[str, ...], message: str) -> None:
    done = empty_runner("boot", *options, "oci:/nowhere:1")
    assert done.returncode == 125
    assert message in done.stderr
    assert done.stderr.count("\n") == 1

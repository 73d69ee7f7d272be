"""The main job: a real image of several layers is built, pushed to a real registry, pulled and booted."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trustme

from tests.support.commands import Runner, run
from tests.support.registry import RunningRegistry, needs_registry
from tests.support.stores import contents

pytestmark = pytest.mark.vm

AWKWARD = "two\nlines, 'quotes' and \"more\" = $HOME \\ ü \t"


def test_the_demo_boots(demo: str, runner: Runner) -> None:
    done = runner("boot", "-e", "DEMO_RUN=now", demo)
    assert done.returncode == 0, done.stderr
    facts = dict(line.strip().split("  ", 1) for line in done.stdout.splitlines()[1:])
    facts = {name.strip(): value.strip() for name, value in facts.items()}
    assert facts["of the build"] == "a variable of the build"
    assert facts["of this run"] == "now"
    assert facts["user"].startswith("uid 10001, gid 10001")
    assert facts["owner of /sandbox"] == "10001:10001, mode 0755"


def test_a_second_build_does_nothing(demo: str) -> None:
    done = run("doit", "build")
    assert done.returncode == 0
    assert not [line for line in done.stdout.splitlines() if line.startswith(".")]


@needs_registry
def test_build_push_pull_boot(project: Path, source: str, registry: RunningRegistry, tmp_path: Path) -> None:
    """Environment, certificates and owners set at build time are seen inside, from an artifact in a registry."""
    authority = trustme.CA()
    client = authority.issue_cert("client.example")
    ca, chain = authority.cert_pem.bytes(), client.cert_chain_pems[0].bytes()
    (project / "ca.pem").write_bytes(ca)
    (project / "client.pem").write_bytes(chain)
    (project / "images.toml").write_text(
        f"""
[image.app]
source = "{source}"
publish = "{registry.name}/team/app"
version = "7"
plain_http = true
size = "1GiB"
[image.app.env]
AWKWARD = {json.dumps(AWKWARD)}
[image.app.tls]
ca = "ca.pem"
client = "client.pem"
[image.app.owners]
"/sandbox" = {{ user = "guest", uid = 70000, gid = 70001, create = true }}
"""
    )
    done = run("doit", "build", cwd=project)
    assert done.returncode == 0, done.stdout + done.stderr
    runner = Runner(tmp_path / "store")
    artifact = f"{registry.name}/team/app:7"
    done = runner("pull", "--json", "--plain-http", artifact)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["fetched"] > 1 << 20
    script = (
        'printf "%s|" "$AWKWARD"; stat -c "%u:%g %U:%G" /sandbox /sandbox/*; cat "$ROOTDISK_TLS_CA" "$ROOTDISK_TLS_CERT";'
        'echo "key=$ROOTDISK_TLS_KEY ssl=$SSL_CERT_FILE"'
    )
    done = runner.boot(artifact, script, "--plain-http")
    assert done.returncode == 0, done.stderr
    value, _, rest = done.stdout.partition("|")
    assert value == AWKWARD
    owners, _, rest = rest.partition("-----BEGIN")
    assert set(owners.splitlines()) == {"70000:70001 guest:guest"}
    assert "-----BEGIN" + rest == (ca + chain).decode() + "key= ssl=\n"


def test_a_bare_tar_whose_process_images_toml_gives(project: Path, demo: str, tmp_path: Path) -> None:
    """A plain root file system in a compressed tar, with no image about it: here one static program of ours."""
    root = tmp_path / "root"
    (root / "bin").mkdir(parents=True)
    init = run("imagetool", "cat", demo, "/.rootdisk/init", binary=True).stdout
    (root / "bin/init").write_bytes(init)
    (root / "bin/init").chmod(0o755)
    subprocess.run(["tar", "--zstd", "-cf", str(tmp_path / "root.tar.zst"), "-C", str(root), "."], check=True)
    (project / "images.toml").write_text(
        f"""
[image.bare]
source = "tar:{tmp_path}/root.tar.zst"
size = "64MiB"
[image.bare.process]
entrypoint = ["/bin/init", "--version"]
"""
    )
    done = run("doit", "build", cwd=project)
    assert done.returncode == 0, done.stdout + done.stderr
    done = Runner(tmp_path / "store")("boot", f"oci:{project}/cache/artifacts/bare:1")
    assert done.returncode == 0, done.stderr
    assert "rootdisk" in done.stdout


def test_secrets_of_one_run(demo: str, runner: Runner, tmp_path: Path) -> None:
    """Run-time certificates and variables: seen in the sandbox that was given them, by its user, and nowhere after."""
    authority = trustme.CA()
    client = authority.issue_cert("client.example")
    files = {
        "ca": authority.cert_pem.bytes(),
        "cert": client.cert_chain_pems[0].bytes(),
        "key": client.private_key_pem.bytes(),
    }
    options = []
    for name, data in files.items():
        (tmp_path / name).write_bytes(data)
        options += [f"--tls-{name}", str(tmp_path / name)]
    (tmp_path / "env").write_text("# a comment\nFROM_FILE=a = b\nFROM_HOST\n")
    options += [
        "--env-file",
        str(tmp_path / "env"),
        "-e",
        f"AWKWARD={AWKWARD}",
        "-e",
        "FROM_SHELL",
        "--hostname",
        "box",
    ]
    script = (
        'printf "%s|%s|%s|" "$AWKWARD" "$FROM_FILE" "$FROM_HOST $FROM_SHELL"; hostname; cat /etc/hostname; stat -c %a:%u $ROOTDISK_TLS_KEY;'
        "cat $ROOTDISK_TLS_CA $ROOTDISK_TLS_CERT $ROOTDISK_TLS_KEY; cat /etc/machine-id"
    )
    done = runner.boot(demo, script, *options, FROM_HOST="host's", FROM_SHELL="shell's")
    assert done.returncode == 0, done.stderr
    awkward, from_file, from_host, rest = done.stdout.split("|")
    assert (awkward, from_file, from_host) == (AWKWARD, "a = b", "host's shell's")
    lines, pem = rest.split("-----BEGIN", 1)
    assert lines.splitlines() == ["box", "box", "400:10001"]
    found, machine = ("-----BEGIN" + pem).rsplit("\n", 2)[0] + "\n", pem.rsplit("\n", 2)[1]
    assert found == b"".join(files.values()).decode()
    assert len(machine) == 32
    secret = files["key"].splitlines()[1]
    assert not [path for path, content in contents(runner.store) if path.suffix != ".raw" and secret in content]
    again = runner.boot(demo, 'echo "$AWKWARD$FROM_FILE$ROOTDISK_TLS_KEY"; ls /run/rootdisk/tls; cat /etc/machine-id')
    assert "key.pem" not in again.stdout
    assert machine not in again.stdout


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("script", "status"),
    [("exit 0", 0), ("exec /no/such/program", 127), ("exec /etc/passwd", 126), ("kill -TERM $$", 143)],
)
def test_exit_status_of_more_programs(demo: str, runner: Runner, script: str, status: int) -> None:
    assert runner.boot(demo, script).returncode == status


@pytest.mark.parametrize(("script", "status"), [("exit 7", 7), ("kill -9 $$", 137)])
def test_exit_status(demo: str, runner: Runner, script: str, status: int) -> None:
    assert runner.boot(demo, script).returncode == status


@pytest.mark.nightly  # 20 s: the program has to have started. test_docker_habits.py has a timeout too
def test_output_before_a_time_out(demo: str, runner: Runner) -> None:
    done = runner.boot(demo, "echo started; sleep 1000", "--timeout", "20")
    assert (done.returncode, done.stdout) == (124, "started\n")


@pytest.mark.parametrize(("program", "status"), [("/no/such/program", 127), ("/etc/passwd", 126)])
def test_a_program_that_cannot_be_run(demo: str, runner: Runner, program: str, status: int) -> None:
    done = runner("boot", "--entrypoint", program, demo)
    assert done.returncode == status
    assert program in done.stderr
    assert done.stderr.count("\n") == 1


def test_output_is_kept_apart(demo: str, runner: Runner) -> None:
    done = runner.boot(demo, "echo out; echo err >&2; head -c 300000 /dev/zero | tr '\\0' x")
    assert done.returncode == 0
    assert done.stdout == "out\n" + "x" * 300000
    assert done.stderr == "err\n"


def test_a_write_is_seen_nowhere_else(demo: str, runner: Runner) -> None:
    """Neither in the next sandbox nor in the base disk."""
    runner("pull", demo)
    before = runner.digests()
    assert before
    done = runner.boot(demo, "echo mine > /sandbox/mine && sync && cat /sandbox/mine")
    assert (done.returncode, done.stdout) == (0, "mine\n")
    done = runner.boot(demo, "ls /sandbox/mine", "--clone", "copy")
    assert done.returncode == 2
    assert runner.digests() == before
    assert not list((runner.store / "sandboxes").iterdir())


def test_the_network_and_the_usual_places(demo: str, runner: Runner) -> None:
    script = (
        "cat /etc/resolv.conf; grep -c . /etc/hosts; ls -d /proc/1 /sys/class /dev/null /dev/pts/ptmx /dev/shm /dev/fd /run /tmp;"
        "cat /proc/sys/kernel/random/entropy_avail; cat /sys/class/net/*/operstate; date +%s"
    )
    done = runner.boot(demo, script)
    assert done.returncode == 0, done.stderr
    assert "nameserver 10.0.2.3" in done.stdout
    assert "/dev/pts/ptmx" in done.stdout


def test_ctrl_c_reaches_the_program(demo: str, runner: Runner) -> None:
    """A signal to the runner is the stop signal to the program, whose exit status comes back."""
    script = "trap 'echo stopped; exit 9' TERM; echo ready; while :; do sleep 0.1; done"
    process = subprocess.Popen(
        [sys.executable, "-m", "runner", "boot", "--entrypoint", "/bin/sh", demo, "--", "-c", script],
        env={**os.environ, "ROOTDISK_STORE": str(runner.store)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=300)
    assert (process.returncode, out) == (9, "stopped\n")


def test_stdin(demo: str, runner: Runner) -> None:
    data = bytes(range(256)) * 4096
    done = subprocess.run(
        [sys.executable, "-m", "runner", "boot", "-i", "--entrypoint", "/usr/bin/sha256sum", demo],
        env={**os.environ, "ROOTDISK_STORE": str(runner.store)},
        input=data,
        capture_output=True,
        timeout=120,
    )
    assert done.stdout.split()[0].decode() == hashlib.sha256(data).hexdigest()

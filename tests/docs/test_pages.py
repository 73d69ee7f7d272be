"""The documents: every command block that can run here does, in a clean clone; what cannot is checked as far as it can be."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from ruamel.yaml import YAML

from runner.cli import parser
from tests.support.commands import ROOT
from tests.support.pages import DOCS, blocks, comes_up, commands, script
from tests.support.ports import free_port
from tests.support.registry import needs_registry

PAGES = sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))
HOWTOS = [page for page in PAGES if page.startswith("howto/")]
DEBIAN = "ID=debian\n" in Path("/etc/os-release").read_text()


@dataclass(frozen=True)
class Clone:
    """A clean clone in which the tutorial's or a page's commands are run; the ports that pages name are free ones."""

    place: Path
    ports: dict[str, str]

    def run(self, page: str, before: str = "") -> str:
        text = script(page)
        for port, free in self.ports.items():
            text = re.sub(rf"(localhost:|127\.0\.0\.1:|-p ){port}\b", rf"\g<1>{free}", text)
        passed = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "REQUESTS_"))}
        environment = {
            **passed,
            "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": str(self.place.parent / "home"),
            "ROOTDISK_STORE": str(self.place.parent / "store"),
            "LANG": "C.UTF-8",
        }
        with (self.place.parent / "log").open("w+") as log:
            process = subprocess.Popen(
                ["bash", "-c", f"{before}\n{text}\n{comes_up(text)}"],
                cwd=self.place,
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
            status = None
            try:
                status = process.wait(900)
            finally:  # what a page starts in the background
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGTERM)
                if status != 0:  # a detached sandbox is in no group of ours
                    runner = str(self.place / ".venv/bin/runner")
                    subprocess.run([runner, "rm", "-f", "web"], env=environment, capture_output=True)
            log.seek(0)
            said = log.read()
        assert status == 0, said[-4000:]
        return said


@needs_registry
@pytest.mark.vm
@pytest.mark.nightly  # some four minutes, in a clone that gets everything anew
def test_the_tutorial_and_then_the_how_to_pages(demo: str, tmp_path: Path) -> None:
    """One test, as the pages begin with what the tutorial leaves."""
    subprocess.run(["git", "clone", "-q", str(ROOT), str(tmp_path / "clone")], check=True)
    shutil.copytree(ROOT / "cache/kernels", tmp_path / "clone/cache/kernels")  # need not be fetched again
    (tmp_path / "home").mkdir()
    clone = Clone(tmp_path / "clone", {port: str(free_port()) for port in ("5000", "5001", "8000")})
    said = clone.run("tutorial.md")
    assert "Linux sandbox-" in said
    assert "from this run" in said
    assert "<h1>hello</h1>" in said
    assert re.search(r"to pull: 0\.\d MB of \d\d\.\d MB", said)
    for page in HOWTOS:
        if any(block.language == "sh" and not block.not_run for block in blocks(page)):
            if page == "howto/custom-kernel.md" and not DEBIAN:
                continue  # the kernel's package has another name there
            clone.run(page, 'export PATH="$PWD/.venv/bin:$PATH"')


@pytest.mark.parametrize(("program", "status"), [("false", 1), (f"{sys.executable} -m http.server --bind", 0)])
def test_a_server_that_a_page_ends_with_has_to_come_up(program: str, status: int) -> None:
    port = free_port()
    text = f"set -e\necho localhost:1\nADDRESS=127.0.0.1:{port} {program} 127.0.0.1 {port} &"
    assert comes_up("echo localhost:1") == ""
    process = subprocess.Popen(["bash", "-c", f"{text}\n{comes_up(text)}"], start_new_session=True)
    try:
        assert process.wait(60) == status
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)


def test_most_commands_are_run() -> None:
    found = [(page, block) for page in ("tutorial.md", *HOWTOS) for block in blocks(page) if block.language == "sh"]
    run = [command for _, block in found if not block.not_run for command in commands(block.text)]
    left = [command for _, block in found if block.not_run for command in commands(block.text)]
    print(f"\n{len(run)} commands are run, {len(left)} are not")
    assert len(run) > 60
    assert len(left) < 30  # examples with names of others; tests elsewhere do the same with names of their own


def test_pages_overwrite_nothing_of_their_reader() -> None:
    """Neither the files of a project nor of a home directory: a page writes files of its own, or into cache/."""
    theirs = r"(?:~/|\$HOME/|/etc/|/root/|images\.toml|dodo\.py|\.gitignore|Dockerfile|policy\.json)"
    wrong = re.compile(rf"(?:>|\btee (?:-a )?|\bsed -i .*|\b(?:cp|mv|install) .* )\s*{theirs}")
    assert wrong.search("cat > images.toml <<'END'")
    assert wrong.search("echo x > ~/.docker/config.json")
    for page in ("tutorial.md", *HOWTOS):
        for block in blocks(page):
            if block.language == "sh":
                found = [line for line in block.text.splitlines() if wrong.search(line)]
                assert found == [], (page, found)


def test_blocks_say_what_they_are() -> None:
    for page in ("tutorial.md", *HOWTOS):
        for block in blocks(page):
            assert block.language, f"{page}: {block.text[:60]}"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd is not installed")
def test_the_unit_is_one(tmp_path: Path) -> None:
    unit, template = (block.text for block in blocks("howto/systemd.md") if block.language == "ini")
    runner = Path(sys.executable).with_name("runner")
    (tmp_path / "rootdisk@root.service").write_text(template.replace("/usr/local/bin/runner", str(runner)))
    argv = ["systemd-analyze", "verify", "--man=no", str(tmp_path / "rootdisk@root.service")]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert (done.returncode, "rootdisk@" in done.stderr) == (0, False), done.stderr
    (tmp_path / "web-sandbox.service").write_text(unit.replace("/usr/local/bin/runner", str(runner)))
    argv = ["systemd-analyze", "verify", "--man=no", str(tmp_path / "web-sandbox.service")]
    done = subprocess.run(argv, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "web-sandbox" not in done.stderr, done.stderr
    for line in re.findall(r"^Exec\w*=\S+ (.*)$", unit + template, re.MULTILINE):
        parser().parse_args(shlex.split(line))
    (tmp_path / "web-sandbox.service").write_text(unit.replace("Restart=on-failure", "Restart=perhaps"))
    done = subprocess.run(argv, capture_output=True, text=True)
    assert "perhaps" in done.stderr  # the checker itself


def test_jobs_of_orchestrators() -> None:
    texts = {block.language: block.text for block in blocks("howto/orchestrators.md")}
    job, daemon = (
        YAML(typ="safe").load(block.text) for block in blocks("howto/orchestrators.md") if block.language == "yaml"
    )
    assert (daemon["apiVersion"], daemon["kind"]) == ("apps/v1", "DaemonSet")
    assert daemon["spec"]["selector"]["matchLabels"] == daemon["spec"]["template"]["metadata"]["labels"]
    (server,) = daemon["spec"]["template"]["spec"]["containers"]
    parser().parse_args(server["command"][1:])
    pod = job["spec"]["template"]["spec"]
    (container,) = pod["containers"]
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    assert {mount["name"] for mount in container["volumeMounts"]} == {volume["name"] for volume in pod["volumes"]}
    assert container["securityContext"]["allowPrivilegeEscalation"] is False
    parser().parse_args(container["command"][1:])
    arguments = re.search(r"args\s+= (\[.*\])", texts["hcl"])
    assert arguments is not None
    parser().parse_args(json.loads(arguments[1]))
    assert texts["hcl"].count("{") == texts["hcl"].count("}")


def test_the_site_is_built(tmp_path: Path) -> None:
    """mkdocs finds no broken link and no page without a place; and would."""
    # Not -q: warnings that are not shown do not count.
    argv = [sys.executable, "-m", "mkdocs", "build", "--strict", "-d", str(tmp_path / "site")]
    done = subprocess.run(argv, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "site/howto/private-registry/index.html").exists()
    shutil.copytree(DOCS, tmp_path / "docs")
    shutil.copy(ROOT / "mkdocs.yml", tmp_path)
    (tmp_path / "docs/index.md").write_text("[nowhere](nowhere.md)\n")
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1

"""The recipes of docs/ci: valid by the schemas that GitHub and GitLab publish, and their commands do what they say.

They run one after the other in one repository that has nothing but images.toml and dodo.py, as a user who may do nothing
special: no new privileges, an empty home, no /dev/kvm, no compiler, a package index with our wheel, a registry with a password.
Only the installation of system packages is left out, as the tests change no system.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from rootdisk import __version__
from tests.support.commands import ROOT, run
from tests.support.copies import build_wheel, copy_project
from tests.support.registry import RunningRegistry, needs_registry, run_registry

RECIPES = ROOT / "docs/ci"
NOBODY = 61234
PASSWORD = ("ann", 'a "quoted" $word \\ and\tmore')
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root to become a user without rights")


def recipe(name: str) -> Any:
    return YAML(typ="safe").load((RECIPES / name).read_text())


@pytest.mark.parametrize(
    ("name", "schema"), [("github-actions.yml", "vendor.github-workflows"), ("gitlab-ci.yml", "vendor.gitlab-ci")]
)
def test_they_are_valid(name: str, schema: str, tmp_path: Path) -> None:
    argv = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", schema]
    done = subprocess.run([*argv, str(RECIPES / name)], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    wrong = (RECIPES / name).read_text().replace("matrix:", "matrixx:").replace("    steps:", "    step:")
    (tmp_path / "wrong.yml").write_text(wrong)
    assert subprocess.run([*argv, str(tmp_path / "wrong.yml")], capture_output=True).returncode == 1


@dataclass(frozen=True)
class Clean:
    """A repository of one's own, whose commands run as a user without rights."""

    place: Path
    registry: RunningRegistry
    index: Path

    def run(self, script: str, **env: str) -> subprocess.CompletedProcess[str]:
        """`script` as a CI runner runs it: bash, stopping at the first error."""
        passed = {name: value for name, value in os.environ.items() if name.startswith(("PIP_", "SSL_", "REQUESTS_"))}
        home = self.place.with_name("home")
        environment = {
            **passed,
            "PATH": "/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin",
            "HOME": str(home),
            "LANG": "C.UTF-8",
            "TMPDIR": str(home),
            "PIP_EXTRA_INDEX_URL": f"file://{self.index}",
            "ROOTDISK_VERSION": __version__,
            "CC": "/bin/false",  # the wheel has the guest's init
            "IMAGE": "web",
            "REGISTRY": self.registry.name,
            "REGISTRY_USER": PASSWORD[0],
            "REGISTRY_PASSWORD": PASSWORD[1],
            **env,
        }
        become = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--no-new-privs"]
        argv = [*become, "bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script]
        return subprocess.run(
            argv, cwd=self.place, env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=900
        )


def package_index(place: Path) -> Path:
    """A package index with the wheel of this project, as files; PEP 503, "Simple Repository API"."""
    wheel = build_wheel(place / "index/rootdisk")
    (place / "index/rootdisk/index.html").write_text(f'<!DOCTYPE html><a href="{wheel.name}">{wheel.name}</a>\n')
    return place / "index"


@pytest.fixture
def clean(demo: str) -> Iterator[Clean]:
    top = Path(tempfile.mkdtemp(prefix="rootdisk-ci-"))  # pytest's own directories are closed to other users
    top.chmod(0o755)
    try:
        index = package_index(top)
        place = top / "repository"
        place.mkdir()
        shutil.copytree(ROOT / "cache/demo/source", top / "source")
        shutil.copytree(ROOT / "cache/kernels", place / "cache/kernels")  # Debian's package need not be fetched again
        (top / "home").mkdir()
        with run_registry(top / "registry", password=PASSWORD) as registry:
            (place / "images.toml").write_text(
                f'[image.web]\nsource = "oci:{top}/source:latest"\npublish = "{registry.name}/team/web-disk"\n'
                'plain_http = true\nsize = "1GiB"\nversion = "3"\nprobe = ["/bin/sh", "-c", "test -x /.rootdisk/init"]\n'
            )
            (place / "dodo.py").write_text("from imagetool.tasks.dodo import *\n")
            for path in (place, top / "home"):
                subprocess.run(["chown", "-R", f"{NOBODY}:{NOBODY}", str(path)], check=True)
            yield Clean(place, registry, index)
    finally:
        shutil.rmtree(top)


@needs_root
@needs_registry
@pytest.mark.nightly  # it builds a wheel and installs it twice: two minutes
@pytest.mark.vm
def test_their_commands(clean: Clean) -> None:
    """First GitHub's, then GitLab's as another machine would, then what goes wrong."""
    github_actions(clean)
    gitlab_ci_finds_what_the_other_built(clean)
    what_cannot_be_done_is_an_exit_status(clean)


def github_actions(clean: Clean) -> None:
    job = recipe("github-actions.yml")["jobs"]["disk"]
    steps = [step for step in job["steps"] if "run" in step and step["name"] != "System packages"]
    assert [step["name"] for step in steps][:4] == ["Install", "Log in", "Build and publish", "Check and boot"]
    assert clean.run("test ! -w /dev/kvm && test ! -w / && ! sudo -n true").returncode == 0
    summary = clean.place.with_name("home") / "summary.md"
    talk = ""
    for step in steps:
        done = clean.run(step["run"], GITHUB_STEP_SUMMARY=str(summary))
        assert done.returncode == 0, step["name"] + done.stdout + done.stderr
        talk += done.stdout + done.stderr
    assert f"published {clean.registry.name}/team/web-disk:3" in talk
    assert "the probe found nothing wrong" in talk
    assert PASSWORD[1] not in talk
    assert f"`{clean.registry.name}/team/web-disk:3` is `sha256:" in summary.read_text()
    (image,) = json.loads((clean.place / "cache/report.json").read_text())["images"]
    assert (image["name"], image["found"]) == ("web", False)
    assert (clean.place.with_name("home") / ".docker/config.json").stat().st_mode & 0o777 == 0o600


def gitlab_ci_finds_what_the_other_built(clean: Clean) -> None:
    """Another machine, in effect: of what the first built only the registry has anything left."""
    for made in ("disks", "web", "doit.sqlite3", "report.json", "report.md"):
        path = clean.place / "cache" / made
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    job = recipe("gitlab-ci.yml")["disk"]
    done = clean.run("\n".join(job["script"]), CI_PIPELINE_SOURCE="schedule")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "has been built before" in done.stdout
    assert "found in the target" in done.stdout
    assert "nothing to remove" in done.stdout or "would remove" in done.stdout


def what_cannot_be_done_is_an_exit_status(clean: Clean) -> None:
    done = clean.run(".venv/bin/imagetool doit build:nobody")
    assert done.returncode == 3
    (clean.place / "images.toml").rename(clean.place / "kept.toml")
    done = clean.run(".venv/bin/imagetool doit build")
    (clean.place / "kept.toml").rename(clean.place / "images.toml")
    assert done.returncode == 1
    assert "images.toml" in done.stderr
    done = clean.run(
        "rm -r ~/.docker cache/web; sed -i s/web-disk/other-disk/ images.toml; .venv/bin/imagetool doit build:$IMAGE"
    )
    assert done.returncode == 1
    assert "login" in done.stdout + done.stderr or "401" in done.stdout + done.stderr


def test_a_report_of_what_is_not_built(tmp_path: Path) -> None:
    copy_project(tmp_path)
    done = run("doit", "report", cwd=tmp_path, PYTHONPATH=str(tmp_path))
    assert done.returncode == 0, done.stderr
    assert "| app | linux/amd64 | not built |" in (tmp_path / "cache/report.md").read_text()

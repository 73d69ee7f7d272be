"""Who may import whom: the contracts of pyproject.toml hold, and each is shown to fail."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from tests.support.commands import ROOT

CONTRACTS = {
    contract["id"]: contract["name"]
    for contract in tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
}
# An import that each of them forbids: in which module, and of which.
CULPRITS = {
    "ground": ("rootdisk/errors.py", "runner.cli"),
    "tools": ("runner/store/store.py", "imagetool.progress"),
    "ground-floors": ("rootdisk/oci/documents.py", "rootdisk.registry.client"),
    "ground-beside": ("rootdisk/cli/arguments.py", "rootdisk.oci.documents"),
    "protocols": ("rootdisk/oci/repository.py", "rootdisk.places"),
    "imagetool-floors": ("imagetool/tree/model.py", "imagetool.config.images"),
    "runner-floors": ("runner/disk/qcow2.py", "runner.machine.qemu"),
}


def test_the_contracts_hold() -> None:
    done = lint(ROOT)
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("contract", CONTRACTS)
def test_each_contract_can_fail(contract: str, tmp_path: Path) -> None:
    for package in ("rootdisk", "imagetool", "runner"):
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__", "built"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    place, module = CULPRITS[contract]
    with (tmp_path / place).open("a") as file:
        file.write(f"\n\ndef culprit() -> None:\n    import {module}\n")
    done = lint(tmp_path, "--contract", contract)
    assert done.returncode == 1
    assert f"{CONTRACTS[contract]} BROKEN" in done.stdout


def test_imports_have_no_circles() -> None:
    """Neither when modules are loaded, nor by imports inside functions of one room."""
    grimp = pytest.importorskip("grimp")
    graph = grimp.build_graph("rootdisk", "imagetool", "runner", cache_dir=None, exclude_type_checking_imports=True)
    for package in sorted(graph.modules):
        assert not graph.nominate_cycle_breakers(package), package


def lint(folder: Path, *options: str) -> subprocess.CompletedProcess[str]:
    """Run import-linter on the packages in `folder`."""
    program = "from importlinter.cli import lint_imports_command; lint_imports_command()"
    return subprocess.run(
        [sys.executable, "-c", program, "--no-cache", *options], cwd=folder, capture_output=True, text=True
    )


# Who reads an artifact's parts: of one published anywhere, of the runner's store, of a packed disk of ours, and of one that is
# about to be published.
READERS = {
    "rootdisk/artifact/published.py",
    "runner/store/store.py",
    "imagetool/packing/reuse.py",
    "imagetool/packing/manifest.py",
}


def test_one_way_to_open_an_artifact() -> None:
    files = [
        path for package in ("rootdisk", "imagetool", "runner", "bench") for path in (ROOT / package).rglob("*.py")
    ]
    found = {
        str(path.relative_to(ROOT))
        for path in files
        if re.search(r"\b(ArtifactConfig|ChunkIndex)\.parse\(", path.read_text("utf-8"))
    }
    assert found == READERS


def test_no_test_is_imported() -> None:
    """What tests share is in tests/support and in fixtures, so that each can be moved and read alone."""
    wrong = re.compile(
        r"^\s*(from|import) tests\.([a-z0-9_.]*\.)?(test_\w+|conftest)\b|^\s*from tests[a-z_.]* import test_", re.M
    )
    assert wrong.search("    from tests.runner.test_a import b")
    assert wrong.search("from tests.conftest import b")
    assert not [path for path in (ROOT / "tests").rglob("*.py") if wrong.search(path.read_text("utf-8"))]


@pytest.mark.parametrize("package", ["rootdisk", "imagetool", "runner"])
def test_the_page_names_every_room(package: str) -> None:
    """docs/architecture.md has a row for each room and each module beside the rooms, and for no other."""
    _, _, page = (ROOT / "docs/architecture.md").read_text("utf-8").partition(f"**{package}/**")
    table = re.split(r"\n\n(?!\|)", page.lstrip(), maxsplit=1)[0]
    listed = {name for row in table.splitlines() for name in re.findall(r"`([a-z0-9_]+(?:\.py|/))`", row.split("|")[1])}
    rooms = {f"{path.parent.name}/" for path in (ROOT / package).glob("*/__init__.py")}
    modules = {path.name for path in (ROOT / package).glob("*.py") if not path.name.startswith("__")}
    assert listed == rooms | modules

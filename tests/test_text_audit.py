"""What is printed passes through rootdisk.text: read from the source, so that a new print that avoids it is found.

A print may say constants, numbers, JSON, and what printable(), one_line() or error_text() return. Any other text in it
has to be among REVIEWED, with the reason why nobody outside can decide it. Both mains have a last net as well.
"""

from __future__ import annotations

import ast
import functools
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.commands import ROOT

SAFE_CALLS = {"printable", "one_line", "error_text", "len", "sum", "dumps", "repr", "round"}
SAFE_NAMES = {"digest", "short", "strerror"}  # hex digits of rootdisk.oci.documents.Digest, and the C library's words
# Function, and why its text is ours or the user's own.
REVIEWED = {
    "rootdisk/cli/progress.py::_bar": "words of ours and numbers, and a reference that went through printable()",
    "runner/commands/sandboxes.py::wait_command": "a number",
    "runner/commands/listing.py::_print": "lines of rootdisk/cli/table.py, which escapes",
    "runner/commands/events.py::events_command": "_line escapes: by one_line, by JSON, or by rootdisk/cli/table.py",
    "runner/commands/connections.py::print_connections": "_text escapes what it shows by printable()",
    "runner/commands/stats.py::_print": "lines of rootdisk/cli/table.py, which escapes, and control codes of ours",
    "runner/commands/login.py::login_command": "a path that went through printable()",
    "runner/commands/login.py::logout_command": "a path and a registry that went through printable()",
    "runner/commands/login.py::_ask": "words of ours and a registry's name, which was checked",
    "runner/commands/snapshots.py::snapshots_command": "lines of rootdisk/cli/table.py, which escapes",
    "runner/commands/store.py::inspect_command": "lines of rootdisk/cli/table.py, which escapes",
    "runner/commands/store.py::rmi_command": "references that went through printable(), and digests",
    "runner/commands/doctor.py::doctor_command": "words about this machine",
    "runner/commands/store.py::pull_command": "numbers and words of ours",
    "runner/commands/store.py::prune_command": "numbers and words of ours",
    "runner/commands/store.py::verify_command": "numbers and words of ours",
    "runner/commands/completion.py::completion_command": "a script of ours",
    "imagetool/cli.py::main": "a module's name",
    "imagetool/commands/registry.py::discover_command": "lines of rootdisk/cli/table.py, which escapes",
    "imagetool/commands/look.py::inspect_command": "imagetool/look/readable.py::readable escapes",
    "imagetool/commands/build.py::build_command": "numbers and digests",
    "imagetool/commands/build.py::_say_what_plain_ignores": "names of options",
    "imagetool/commands/build.py::disk_command": "a path that the user wrote",
    "imagetool/commands/project.py::init_command": "a file of TOML, whose strings are escaped",
    "imagetool/commands/completion.py::schema_command": "a file of ours",
    "imagetool/commands/completion.py::completion_command": "a script of ours",
    "imagetool/commands/look.py::ls_command": "imagetool/look/inspection.py::row escapes",
    "imagetool/commands/look.py::diff_command": "imagetool/look/inspection.py::compared escapes",
    "imagetool/commands/look.py::explain_command": "imagetool/look/explanation.py::words escapes",
    "imagetool/commands/verify.py::verify_command": "digests and words of ours",
    "imagetool/commands/export.py::export_command": "YAML whose texts are JSON, and words of ours",
    "imagetool/commands/look.py::map_command": "a path that the user wrote",
    "imagetool/build/cached_artifact.py::find_built": "names of images.toml, which were checked",
    "imagetool/tasks/actions.py::prune": "names of images.toml, which were checked",
    "imagetool/tasks/actions.py::explain": "lines that imagetool/look/explanation.py escapes",
    "imagetool/tasks/actions.py::graph": "a path in the cache",
    "imagetool/tasks/actions.py::report": "a path in the cache",
    "imagetool/tasks/actions.py::_say": "names of images.toml, which were checked",
    "imagetool/demo/app.py::main": "runs in the guest",
    "imagetool/prove/reproduction.py::main": "read by our own process",
}


@functools.cache
def sources() -> list[tuple[str, ast.Module]]:
    return [
        (str(path.relative_to(ROOT)), ast.parse(path.read_text()))
        for top in ("rootdisk", "runner", "imagetool")
        for path in sorted((ROOT / top).rglob("*.py"))
    ]


def functions(tree: ast.AST, name: str = "") -> Iterator[tuple[str, ast.AST]]:
    """Every node with the outermost function that it is in."""
    for node in ast.iter_child_nodes(tree):
        inner = name or (node.name if isinstance(node, ast.FunctionDef) else "")
        yield inner, node
        yield from functions(node, inner)


def is_print(node: ast.AST) -> bool:
    if not isinstance(node, ast.Call):
        return False
    called = ast.unparse(node.func)
    return called == "print" or called in ("sys.stderr.write", "sys.stdout.write", "TaskFailed")


def unchecked(node: ast.expr) -> Iterator[str]:
    """The parts of a printed expression that may hold any text."""
    if isinstance(node, ast.Constant):
        return
    if isinstance(node, ast.JoinedStr):
        for part in node.values:
            if isinstance(part, ast.FormattedValue) and part.conversion != ord("r") and not _is_number(part):
                yield from unchecked(part.value)
        return
    if isinstance(node, ast.IfExp):
        yield from unchecked(node.body)
        yield from unchecked(node.orelse)
        return
    if isinstance(node, ast.BinOp):
        yield from unchecked(node.left)
        yield from unchecked(node.right)
        return
    if isinstance(node, ast.Call):
        name = ast.unparse(node.func).rpartition(".")[2]
        if name in SAFE_CALLS:
            return
        if name == "join" and len(node.args) == 1 and isinstance(node.args[0], ast.GeneratorExp):
            yield from unchecked(node.args[0].elt)
            return
    if isinstance(node, ast.Name | ast.Attribute) and ast.unparse(node).rpartition(".")[2] in SAFE_NAMES:
        return
    yield ast.unparse(node)


def _is_number(part: ast.FormattedValue) -> bool:
    return part.format_spec is not None and ast.unparse(part.format_spec).rstrip("'\"")[-1:] in "fdxgn"


def test_no_print_avoids_it() -> None:
    found, used = [], set()
    for path, tree in sources():
        for function, node in functions(tree):
            if is_print(node):
                assert isinstance(node, ast.Call)
                for part in (part for argument in node.args for part in unchecked(argument)):
                    place = f"{path}::{function}"
                    used.add(place)
                    if place not in REVIEWED:
                        found.append(f"{path}:{node.lineno} {function}: {part}")
    assert not found, "through printable(), one_line() or error_text(), or among REVIEWED:\n" + "\n".join(found)
    assert not REVIEWED.keys() - used, "not needed any more"


def test_what_errors_cut_is_printable_too() -> None:
    """A message that cuts a text to a length has it from outside: `{text:.80}` has to be `{printable(text, 80)}` or `!r`."""
    found = []
    for path, tree in sources():
        for function, node in functions(tree):
            if isinstance(node, ast.FormattedValue) and node.format_spec is not None and node.conversion != ord("r"):
                spec = "".join(str(part.value) for part in node.format_spec.values if isinstance(part, ast.Constant))  # type: ignore[attr-defined]
                if spec.startswith(".") and spec[1:].isdigit():
                    found.append(f"{path}:{node.lineno} {function}: {ast.unparse(node.value)}")
    assert not found


def test_errors_hold_no_raw_bytes() -> None:
    """`.decode()` in the text of an error or print is text from outside."""
    found = []
    for path, tree in sources():
        for function, node in functions(tree):
            if not isinstance(node, ast.FormattedValue) or node.conversion == ord("r"):
                continue
            if isinstance(node.value, ast.Call) and ast.unparse(node.value.func).endswith(".decode"):
                found.append(f"{path}:{node.lineno} {function}: {ast.unparse(node.value)}")
    assert not found


@pytest.mark.parametrize("command", [("runner", "inspect"), ("imagetool", "inspect"), ("imagetool", "ls")])
@pytest.mark.parametrize(
    "name", ["oci:\x1b]0;x\x07:t", "a\nb/c", "\u202egpj.exe", "oci:" + "x" * 5000, "tar:\x9b31m"], ids=repr
)
def test_both_mains_have_a_last_net(command: tuple[str, str], name: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command, name],
        cwd=ROOT, env={"HOME": str(tmp_path), "PATH": "/usr/bin:/bin"}, capture_output=True, timeout=60,
    )  # fmt: skip
    said = done.stderr.decode()
    assert done.returncode
    assert said.removesuffix("\n").isprintable()
    assert len(said) < 1000

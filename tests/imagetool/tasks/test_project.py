"""A project of one's own: begun by `imagetool init`, built by `imagetool doit`, with variables; and old copies of dodo.py."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from imagetool.config import images
from imagetool.tasks import actions
from rootdisk.errors import BadInput
from tests.support.commands import ROOT, run
from tests.support.layouts import write_layout
from tests.support.tars import END, directory, file

DESCRIBED = '[image.app]\nsource = "oci:layout:${TAG:-t}"\nkernel = "none"\nsize = "64MiB"\nversion = "${VERSION}"\n'


@pytest.fixture
def place(tmp_path: Path) -> Path:
    write_layout(tmp_path / "layout", "t", [directory(b"etc") + file(b"etc/f", b"1" * 9000) + END])
    return tmp_path


def test_a_project_whose_path_is_not_text(place: Path) -> None:
    """Its path would stand in receipts, which are."""
    odd = place / os.fsdecode(b"a\xff")
    odd.mkdir()
    (odd / "images.toml").write_text('[image.app]\nsource = "oci:../layout:t"\n')
    done = run("imagetool", "doit", "list", cwd=odd)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(r"doit: the path \S+/a\\xff/cache is not UTF-8: move the project to .*\n", done.stderr)
    assert [path.name for path in odd.iterdir()] == ["images.toml"]


def test_init_begins_a_project_that_builds(place: Path) -> None:
    done = run("imagetool", "init", "--json", "oci:layout:t", cwd=place)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)[0]["files"] == ["images.toml", "dodo.py", ".gitignore"]
    assert (place / "dodo.py").read_text().splitlines()[-1].startswith("from imagetool.tasks.dodo import *")
    text = (place / "images.toml").read_text()
    (place / "images.toml").write_text(
        text.replace("# kernel =", 'kernel = "none" #').replace("# size =", 'size = "64MiB" #')
    )
    for command in (("doit",), ("imagetool", "doit")):
        done = run(*command, "build", cwd=place)
        assert done.returncode == 0, done.stdout + done.stderr
    assert (place / "cache/artifacts/layout/index.json").exists()
    subprocess.run(["git", "init", "-q", str(place)], check=True)
    said = subprocess.run(
        ["git", "status", "--porcelain"], cwd=place, check=True, capture_output=True, text=True
    ).stdout
    assert sorted(said.splitlines()) == [f"?? {name}" for name in (".gitignore", "dodo.py", "images.toml", "layout/")]


@pytest.mark.parametrize("name", ["images.toml", "dodo.py", ".gitignore"])
@pytest.mark.parametrize("kind", ["file", "link"])
def test_init_overwrites_nothing(place: Path, name: str, kind: str) -> None:
    if kind == "file":
        (place / name).write_text("precious\n")
    else:
        (place / name).symlink_to("nowhere")
    done = run("imagetool", "init", "oci:layout:t", cwd=place)
    assert "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1
    assert name in done.stderr
    if kind == "file":
        assert (place / name).read_text() == "precious\n"
    else:
        assert not (place / "nowhere").exists()
        assert (place / name).is_symlink()
    written = {"images.toml", "dodo.py", ".gitignore"} & set(os.listdir(place))
    assert (done.returncode, written) == (
        (2, {name}) if name == "images.toml" else (0, {"images.toml", "dodo.py", ".gitignore"})
    )


def test_init_writes_one_file_if_it_is_named(place: Path) -> None:
    done = run("imagetool", "init", "oci:layout:t", "other.toml", cwd=place)
    assert (done.returncode, done.stdout) == (0, "other.toml\n")
    assert sorted(os.listdir(place)) == ["layout", "other.toml"]
    done = run("imagetool", "init", "oci:layout:t", "-", cwd=place)
    assert done.stdout.startswith("#:schema")


def test_imagetool_doit_needs_no_dodo(place: Path) -> None:
    """Nor one of ours: another file of that name is not run. Variables come from the environment or --set; -f names a file."""
    (place / "dodo.py").write_text("def task_stranger():\n    return {'actions': ['touch ran']}\n")
    (place / "deep").mkdir()
    (place / "deep/other.toml").write_text(DESCRIBED.replace("oci:layout", "oci:../layout"))
    done = run("imagetool", "doit", "-f", "deep/other.toml", "--set", "VERSION=7", cwd=place)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"published oci:{place}/deep/cache/artifacts/app:7" in done.stdout
    assert not (place / "ran").exists()
    done = run("imagetool", "doit", "-f", "deep/other.toml", "list", "--all", cwd=place, VERSION="8")
    assert "build:app" in done.stdout
    done = run("imagetool", "doit", "-f", "deep/other.toml", "build:app", cwd=place)
    assert (done.returncode, done.stderr) == (
        1,
        "doit: other.toml:5:1: image.app.version: ${VERSION} is not set: export it, or write ${VERSION:-DEFAULT}\n",
    )
    for wrong in (("-f", "nowhere/x.toml"), ("--set", "VERSION")):
        done = run("imagetool", "doit", *wrong, "build", cwd=place)
        assert done.returncode in (1, 2)
        assert done.stderr.count("\n") == 1


def test_variables_in_values(tmp_path: Path) -> None:
    text = (
        '[image.a]\nsource = "${REGISTRY}/team/a:${TAG:-1}"\npublish = ["${REGISTRY}/out", "oci:${DIR}"]\ncpus = "${CPUS}"\n'
        'plain_http = "${PLAIN:-true}"\n[image.a.env]\nA = "$${HOME} $HOME ${EMPTY:-x}${REGISTRY}"\n'
        '[image.a.process]\ncmd = ["${TAG:-a b}", "c"]\n[image.a.owners]\n"/x" = "${USER_NAME:-app}"\n'
    )
    variables = {"REGISTRY": "registry.example", "DIR": "out", "CPUS": "3", "EMPTY": ""}
    (image,) = images.parse(text, tmp_path / "images.toml", variables)
    assert str(image.source) == "registry.example/team/a:1"
    assert [str(place.place) for place in image.publish] == ["registry.example/out", f"oci:{tmp_path}/out"]
    assert (image.cpus, image.plain_http) == (3, True)
    assert image.env == ("A=${HOME} $HOME xregistry.example",)
    assert image.process.cmd == ("a b", "c")
    assert type(image.env[0]) is str
    assert image.owners[0].user == "app"


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ('source = "${NO_SUCH}/a:1"', r"images.toml:2:1: image.a.source: \$\{NO_SUCH\} is not set"),
        ('source = "${}"', "is not a variable"),
        ('source = "${1A}"', "is not a variable"),
        ('source = "${A"', "is not a variable"),
        ('source = "oci:x:t"\ncpus = "${TEXT}"', "image.a.cpus: is a string, expected a number"),
        ('source = "oci:x:t"\ncpus = "4"', "image.a.cpus: is a string, expected a number"),
        ('source = "oci:x:t"\nplain_http = "${TEXT}"', "expected true or false"),
    ],
)
def test_wrong_variables(tmp_path: Path, value: str, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        images.parse(f"[image.a]\n{value}\n", tmp_path / "images.toml", {"TEXT": "many"})


def test_the_command_line_has_no_variables(place: Path) -> None:
    assert images.of_command_line("a", {"source": "oci:x:t", "env": {"A": "${NO_SUCH}"}}).env == ("A=${NO_SUCH}",)


def test_an_old_copy_of_dodo_works_and_warns(place: Path) -> None:
    """For one release: the file as it was in 0.1, which users have copied."""
    (place / "dodo.py").write_text((Path(__file__).parent / "dodo-0.1.py.txt").read_text())
    (place / "images.toml").write_text(DESCRIBED)
    for command in ("list", "build", "report", "explain", "graph", "prune"):
        done = run("doit", command, cwd=place, PYTHONWARNINGS="default", VERSION="1")
        assert done.returncode == 0, (command, done.stdout + done.stderr)
        assert "DeprecationWarning" in done.stderr
        assert "from imagetool.tasks.dodo import *" in done.stderr
    done = run("doit", "build", cwd=place, VERSION="1", PYTHONWARNINGS="")
    assert done.returncode == 0
    assert ".  " not in done.stdout  # nothing again
    # By default, too:
    assert done.stderr.count("dodo.py:18: DeprecationWarning: this dodo.py is of an older rootdisk") == 1
    done = run("doit", "list", cwd=place, VERSION="1", PYTHONWARNINGS="ignore")
    assert done.stderr == ""
    # And the line that takes its place finds all that it has made.
    (place / "dodo.py").write_text("from imagetool.tasks.dodo import *\n")
    done = run("doit", "build", cwd=place, VERSION="1")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "unchanged" in done.stdout or ".  disk" not in done.stdout


def test_the_graph_of_a_project_with_tasks_of_its_own(place: Path) -> None:
    own = "\n\ndef task_mine():\n    return {'actions': ['true'], 'task_dep': ['publish:app']}\n"
    (place / "dodo.py").write_text(f"from imagetool.tasks.dodo import *{own}")
    (place / "images.toml").write_text(DESCRIBED)
    assert run("doit", "graph", cwd=place, VERSION="1").returncode == 0
    assert "mine" in (place / "cache/graph.svg").read_text()
    names = run("doit", "list", cwd=ROOT).stdout.split()
    assert {"demo", "bench"} <= set(names)
    assert not {"demo", "bench"} & set(run("doit", "list", cwd=place, VERSION="1").stdout.split())


def test_init_keeps_a_dollar_of_the_image_as_text(tmp_path: Path) -> None:
    config = {"Entrypoint": ["sh", "-c", "echo ${HOME} ${"]}
    write_layout(tmp_path / "layout", "t", [file(b"f") + END], config)
    text = run("imagetool", "init", "oci:layout:t", "-", cwd=tmp_path).stdout
    (image,) = images.parse(text.replace("# entrypoint", "entrypoint"), tmp_path / "images.toml", {})
    assert image.process.entrypoint == ("sh", "-c", "echo ${HOME} ${")


WRONG_WORDS = [
    (["biuld"], "doit: 'biuld' is neither a task nor a command: did you mean build?"),
    (["build:apq"], "doit: 'build:apq' is neither a task nor a command: did you mean build:app?"),
    (["clean", "nosuch"], "doit: 'nosuch' is neither a task nor a command: "),
    (["info", "nosuch"], "doit: 'nosuch' is neither a task nor a command: "),
    (["prune", "--kep", "1"], "doit: --kep is not an option: did you mean --keep?"),
    (["prune", "--keep"], "doit: --keep needs a value"),
    (["build", "--force"], "doit: --force is not an option here: imagetool doit publish:app has it"),
    (["info"], "doit: info needs the name of one task: imagetool doit info build:NAME"),
    (["-n", "x", "build"], "doit: -n 'x': write a whole number"),
    (["run", "--backend", "foo"], "doit: --backend 'foo': choose from "),
    (
        ["--chek_file_uptodate", "foo"],
        "doit: --chek_file_uptodate is not an option: did you mean --check_file_uptodate?",
    ),
    (["run", "--check_file_uptodate", "foo"], "doit: No check_file_uptodate named 'foo': see imagetool doit help run"),
]


@pytest.mark.parametrize(("words", "said"), WRONG_WORDS, ids=["-".join(words) for words, _ in WRONG_WORDS])
def test_wrong_words_are_one_line(place: Path, words: list[str], said: str) -> None:
    (place / "images.toml").write_text(DESCRIBED)
    done = run("imagetool", "doit", "--set", "VERSION=1", *words, cwd=place)
    assert done.returncode == 3
    assert done.stderr.startswith(said)
    assert done.stderr.count("\n") == 1


def test_options_of_doit_s_default_command(place: Path) -> None:
    """As plain doit takes them; and what --keep refuses before it looks at a target."""
    (place / "images.toml").write_text(DESCRIBED)
    done = run("imagetool", "doit", "--set", "VERSION=1", "-n", "2", "--continue", "prune", "--keep", "1", cwd=place)
    assert (done.returncode, "was published to" in done.stdout) == (0, True), done.stderr
    done = run("imagetool", "doit", "--set", "VERSION=1", "prune", "--keep", "0", cwd=place)
    assert (done.returncode, "--keep 0: give the number" in done.stderr + done.stdout) == (1, True)


@pytest.mark.parametrize("tool", ["doit", "imagetool doit"])
def test_an_output_that_is_gone_or_full(place: Path, tool: str) -> None:
    (place / "images.toml").write_text(DESCRIBED)
    (place / "dodo.py").write_text("from imagetool.tasks.dodo import *\n")
    env = {**os.environ, "PYTHONPATH": str(ROOT), "VERSION": "1"}
    command = f"{sys.executable} -m {tool} list"
    for script, status, errors in (
        (f"{command} | true; exit ${{PIPESTATUS[0]}}", (0, 1), ""),
        (f"{command} >/dev/full", (1,), "doit: cannot write to standard output: No space left on device\n"),
        (f"{command} >&-", (0,), ""),
    )[: 2 if tool == "doit" else 3]:  # doit itself looks at its closed output before it loads anything of ours
        done = subprocess.run(["bash", "-c", script], cwd=place, env=env, stderr=subprocess.PIPE, text=True)
        assert done.returncode in status
        assert done.stderr == errors


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ('[web]\nsource = "oci:x:t"\n', "images.toml:1:2: web: unknown key: write [image.web]"),
        ('[image]\nsource = "oci:x:t"\n', "images.toml:1:2: image: has a source and no name: write [image.NAME]"),
    ],
)
def test_a_table_at_the_wrong_place(tmp_path: Path, text: str, hint: str) -> None:
    with pytest.raises(BadInput) as caught:
        images.parse(text, tmp_path / "images.toml")
    assert str(caught.value) == hint


def test_a_module_that_is_not_installed_is_one_line() -> None:
    """An environment of an older rootdisk, with the code of a newer one."""

    @actions.step
    def fails() -> None:
        raise ModuleNotFoundError("No module named 'newer'", name="newer")

    failed = fails()
    assert failed is not None
    assert str(failed.get_msg()).strip().endswith("newer is not installed: pip install 'rootdisk[build]'")

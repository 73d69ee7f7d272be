"""images.toml: what is understood, and where and how errors say what is wrong."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
import trustme

from imagetool.config import images as config
from imagetool.config.toml_lines import position_of
from imagetool.layout.additions import Owner
from rootdisk.artifact.format import Process
from rootdisk.errors import BadInput
from rootdisk.oci.documents import Platform
from tests.support.commands import ROOT
from tests.support.descriptions import KEY, WRONG
from tests.support.steps import LINEAR, growth

FILE = Path("/project/images.toml")
CERTIFICATE = trustme.CA().cert_pem.bytes().decode()


def one(body: str, rest: str = "") -> config.Image:
    (image,) = config.parse(f'[image.a]\nsource = "example.org/a:1"\n{body}\n{rest}', FILE)
    return image


def test_the_project_s_own_file() -> None:
    (demo,) = config.load(ROOT / "images.toml")
    assert demo.name == "demo"
    assert demo.owners == (Owner("/sandbox", "sandbox", create=True),)


def test_defaults() -> None:
    image = one("")
    assert str(image.source) == "example.org/a:1"
    assert [str(p) for p in image.publish] == ["oci:/project/cache/artifacts/a"]
    assert (image.version, image.platform, image.size, image.memory, image.cpus) == (
        *("1", Platform.host(), 8 << 30, 512 << 20),
        1,
    )
    assert image.kernel == "debian"


def test_several_platforms() -> None:
    """One image each, all of one version, and with the defaults' platform only where nothing else is said."""
    text = '[defaults]\nplatform = "arm64"\n[image.a]\nsource = "x.y/a:1"\nplatforms = ["amd64", "linux/arm/v7"]\n'
    images = config.parse(text + '[image.b]\nsource = "x.y/b:1"\n', FILE)
    assert [(image.name, str(image.platform), image.group) for image in images] == [
        ("a-amd64", "linux/amd64", "a"),
        ("a-arm-v7", "linux/arm/v7", "a"),
        ("b", "linux/arm64", ""),
    ]
    assert {str(image.publish[0]) for image in images if image.group} == {"oci:/project/cache/artifacts/a"}
    with pytest.raises(BadInput, match="makes a-amd64"):
        config.parse(text + '[image.a-amd64]\nsource = "x.y/b:1"\n', FILE)


def test_every_key(tmp_path: Path) -> None:
    (tmp_path / "ca.pem").write_text(CERTIFICATE)
    (tmp_path / "a.env").write_text("# why\nA=of the file\n\n B=c = d\r\n")
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/run").write_text("#!/bin/sh\n")
    (tmp_path / "tree/run").chmod(0o700)
    (tmp_path / "tree/link").symlink_to("run")
    text = """
[image.a]
source = "oci:layout:x"
platform = "linux/arm64"
version = "2.1"
publish = ["oci:out", "localhost:5000/a"]
plain_http = true
size = "64MiB"
kernel = "boot/vmlinuz"
max_blob = "500MiB"
memory = "1GiB"
cpus = 2
env.A = "1"
tls.ca = "ca.pem"
labels.team = "x"
env_files = ["a.env"]
remove = ["/usr/share/doc/", "/etc/motd"]
[[image.a.files]]
path = "/etc/app.conf"
text = "x = 1\\n"
mode = "0600"
owner = "user:7"
[[image.a.files]]
path = "/srv"
from = "tree"
[image.a.owners]
"/a" = "user"
"/b" = "1:2"
"/c" = { user = "new", uid = 7, gid = 8, create = true }
"/d" = { uid = 9 }
[image.a.process]
entrypoint = ["x"]
workdir = "/w"
user = "u"
"""
    (image,) = config.parse(text, tmp_path / "images.toml")
    assert image.source.path == tmp_path / "layout"
    assert [str(p) for p in image.publish] == [f"oci:{tmp_path}/out", "localhost:5000/a:latest"]
    assert image.kernel == str(tmp_path / "boot/vmlinuz")
    assert image.max_blob == 500 << 20
    assert (image.size, image.memory, image.cpus, image.plain_http) == (64 << 20, 1 << 30, 2, True)
    assert image.env == ("A=of the file", "B=c = d", "A=1")
    assert image.remove == ("/etc/motd", "/usr/share/doc")
    assert [(f.path, oct(f.mode), f.owner, f.size, f.target) for f in image.files] == [
        ("/etc/app.conf", "0o100600", "user:7", 6, ""),
        ("/srv", "0o40755", "", 0, ""),
        ("/srv/link", "0o120777", "", 0, "run"),
        ("/srv/run", "0o100755", "", 10, ""),
    ]
    assert image.tls_ca == CERTIFICATE.encode()
    assert image.owners == (
        Owner("/a", "user"),
        Owner("/b", "1", "2"),
        Owner("/c", "new", "", 7, 8, True),
        Owner("/d", "9", "", 9),
    )
    # As `docker run --entrypoint`: the image's command belongs to its own entrypoint.
    assert image.process.apply(Process(("sh",), ("-c",))) == Process(("x",), (), "/w", "u")


@pytest.mark.parametrize(("line", "pid1"), [("", None), ("process.pid1 = true", True), ("process.pid1 = false", False)])
def test_process_1(line: str, pid1: bool | None) -> None:
    """What images.toml says counts; the image's volumes stay."""
    (image,) = config.parse(f'[image.a]\nsource = "x.y/a"\n{line}\n', FILE)
    assert image.process.apply(Process(("sh",), volumes=("/data",))) == Process(("sh",), volumes=("/data",), pid1=pid1)
    assert image.process.to_json() == ({} if pid1 is None else {"pid1": pid1})


def test_defaults_table_is_merged() -> None:
    text = '[defaults]\nsize = "1GiB"\ncpus = 2\nenv = {A = "1", B = "1"}\n[image.a]\nsource = "x.y/a"\ncpus = 3\nenv.B = "2"'
    (image,) = config.parse(text, FILE)
    assert (image.size, image.cpus, image.env) == (1 << 30, 3, ("A=1", "B=2"))


def test_every_key_may_be_a_default(tmp_path: Path) -> None:
    (tmp_path / "e").write_text("E=1")
    (tmp_path / "ca").write_text(CERTIFICATE)
    body = """
platform = "linux/arm64"
version = "2.1"
publish = "localhost:5000/a"
plain_http = true
ca_file = "ca"
size = "64MiB"
kernel = "none"
memory = "1GiB"
cpus = 2
env_files = ["e"]
env.A = "1"
labels.team = "x"
tls.ca = "ca"
remove = ["/a"]
owners."/a" = "user"
process.cmd = ["x"]
source = "x.y/a:3"
files = [{path = "/f", text = "x"}]
"""
    (from_defaults,) = config.parse(f"[defaults]{body}[image.a]\n", tmp_path / "images.toml")
    (own,) = config.parse(f"[image.a]{body}", tmp_path / "images.toml")
    assert from_defaults == own
    more = "remove = ['/b']\nfiles = [{path = '/f', text = 'mine'}, {path = '/e', text = ''}]"
    (added,) = config.parse(f"[defaults]{body}[image.a]\n{more}", tmp_path / "images.toml")
    assert added.remove == ("/a", "/b")
    assert [(file.path, file.content) for file in added.files] == [("/e", b""), ("/f", b"mine")]


def test_versions_are_made_of_templates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def version(text: str, source: str = "x.y/a:3.1") -> str:
        body = f'[image.a]\nsource = "{source}"\nversion = "{text}"'
        (image,) = config.parse(body, tmp_path / "images.toml")
        return image.version

    monkeypatch.setenv("SOURCE_DATE_EPOCH", "1700000000")
    assert version("{source_tag}-{date}") == "3.1-2023-11-14"
    with pytest.raises(BadInput, match=r"images\.toml:3:1: .*git describe: "):
        version("{git}")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@x"]
    subprocess.run([*git, "init", "-q"], check=True)
    subprocess.run([*git, "commit", "-qm", "x", "--allow-empty"], check=True)
    subprocess.run([*git, "tag", "v1.0"], check=True)
    assert version("{git}") == "v1.0"
    with pytest.raises(BadInput, match="the source has no tag"):
        version("{source_tag}", "oci:layout")
    with pytest.raises(BadInput, match=r"known are \{git\}"):
        version("{gti}")


@pytest.mark.parametrize(
    ("body", "line", "words"),
    WRONG,
)
def test_errors_name_the_line(body: str, line: int, words: str) -> None:
    with pytest.raises(BadInput) as caught:
        one(body)
    assert str(caught.value).startswith(f"images.toml:{line}:")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("line", "example"),
    [
        ("publish = 5", '["registry.example/app"]'),
        ('env_files = "x"', '["app.env"]'),
        ("probe = 5", '["python3", "app.py"]'),
    ],
)
def test_the_hint_for_a_list_fits_the_key(line: str, example: str) -> None:
    with pytest.raises(BadInput) as caught:
        config.parse(f'[image.a]\nsource = "x.y/a"\n{line}', FILE)
    assert str(caught.value.hint).endswith(example)


def test_a_byte_order_mark_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "images.toml").write_bytes(b'\xef\xbb\xbf[image.a]\nsource = "x.y/a"\n')
    assert [image.name for image in config.load(tmp_path / "images.toml")] == ["a"]


def test_a_private_key_in_certificates_names_the_runner_s_option(tmp_path: Path) -> None:
    (tmp_path / "client.pem").write_text("x" + KEY)
    with pytest.raises(BadInput, match="runner boot --tls-key"):
        config.parse('[image.a]\nsource = "x.y/a"\ntls.client = "client.pem"', tmp_path / "images.toml")


@pytest.mark.parametrize(
    "text",
    [
        "[image.a]\ncpus = " + "9" * 5000,
        "[image.a]\nx" + ".a" * 5000 + " = 1",
        "x = " + "[" * 5000,
        "[image",
        "a = ",
        "[image.a]\nsource = 'x'\nsource = 'y'",
        "",
        "[defaults]",
    ],
)
def test_not_a_description(text: str) -> None:
    with pytest.raises(BadInput, match=r"images\.toml"):
        config.parse(text, FILE)


def test_positions_of_statements_over_several_lines() -> None:
    text = 'a = """\nb = 1\n[c]\n"""\n\n[t."x.y"] # why\nlist = [\n  1, # [no]\n]\nlast = {k = 1}\n[[many]]\nz = 1\n'
    text += "[[many]]\n  z = {y = [ {q = 1},\n  {r = 2}]}\n[many.n]\nu = 1\n"
    expected = {
        ("a",): (1, 1),
        ("t", "x.y"): (6, 4),
        ("t", "x.y", "list"): (7, 1),
        ("t", "x.y", "last", "k"): (10, 9),
        ("many", 0, "z"): (12, 1),
        ("many", 1, "z", "y", 1, "r"): (15, 4),
        ("many", 1, "n", "u"): (17, 1),
    }
    assert {keys: position_of(text, keys) for keys in expected} == expected
    assert position_of(text, ("b",)) is None


def test_where_an_error_stands_costs_what_the_file_is_long() -> None:
    """Found by fuzzing: a list of 1000 lines took 4 s, as each line began the statement again."""

    def work(count: int) -> Callable[[], object]:
        lines = "".join(f'  {{path = "/etc/{n}", text = "t"}},\n' for n in range(count))
        text = f'[image.a]\nfiles = [\n{lines}]\n"odd [key" = """a\n]"""\nwrong = 1\n'
        assert position_of(text, ("image", "a", "wrong")) == (count + 6, 1)
        return lambda: position_of(text, ("image", "a", "wrong"))

    assert growth(work, 100) < LINEAR


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("A=1\nB", "e.env, line 2: 'B' has no value: write NAME=VALUE"),
        ("export A=1", "shell syntax"),
        ("A = 1", "without blanks around ="),
        ("A=" + "x" * (1 << 20), "e.env is larger than 1MiB: is it the right file?"),
    ],
)
def test_files_of_variables_are_read_as_the_runner_reads_them(tmp_path: Path, content: str, words: str) -> None:
    (tmp_path / "e.env").write_text(content)
    with pytest.raises(BadInput) as caught:
        config.parse('[image.a]\nsource = "x.y/a"\nenv_files = ["e.env"]', tmp_path / "images.toml")
    assert words in str(caught.value)

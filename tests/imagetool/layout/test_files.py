"""`files` and `remove` of images.toml, from the description to the disk."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from imagetool.build import disk as build
from imagetool.config import images
from imagetool.ext4.reader import Reader
from imagetool.sources.open import open_source
from rootdisk.errors import BadInput, RootdiskError
from tests.support.layouts import write_layout
from tests.support.tars import END, directory, file, symlink

IMAGE = (
    directory(b"etc")
    + file(b"etc/passwd", b"root:x:0:0::/:/bin/sh\napp:x:7:8::/:/bin/sh\n")
    + file(b"etc/group", b"app:x:8:\nwww:x:9:\n")
    + file(b"etc/motd", b"welcome\n")
    + directory(b"usr")
    + directory(b"usr/lib", mode=0o700)
    + file(b"usr/lib/old", b"old", uid=5)
    + file(b"usr/lib/kept", b"kept", uid=5)
    + symlink(b"lib", b"usr/lib")
)
SANDBOX = '[image.a.owners]\n"/sandbox" = { user = "guest", create = true }\n'


def disk(tmp_path: Path, body: str, name: str = "disk", umask: int = 0o022) -> Path:
    write_layout(tmp_path / "layout", "t", [IMAGE + END, directory(b"sandbox") + END])
    text = f'[image.a]\nsource = "oci:layout:t"\nplatform = "linux/amd64"\nsize = "64MiB"\n{body}'
    (image,) = images.parse(text, tmp_path / "images.toml")
    (tmp_path / "cache").mkdir(exist_ok=True)
    before = os.umask(umask)
    try:
        with open_source(str(image.source), image.platform) as source:
            build.make_raw(image, source, b"\x7fELF", tmp_path / name, tmp_path / "cache")
    finally:
        os.umask(before)
    return tmp_path / name


def seen(path: Path) -> dict[str, tuple[str, int, int, bytes]]:
    """Mode, owner and content (or target) of every name that is not rootdisk's."""
    found = {}
    with Reader.open(path) as reader:
        for name, node in reader.walk():
            if name.startswith((b"/.rootdisk", b"/lost")):
                continue
            data = b"".join(reader.content(node)) if node.mode >> 12 == 8 else b""
            data = reader.target(node) if node.mode >> 12 == 10 else data
            found[name.decode()] = (oct(node.mode), node.uid, node.gid, data)
    return found


def test_files_and_directories(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "lib").mkdir(parents=True)
    (tree / "lib/run").write_bytes(b"#!")
    (tree / "lib/run").chmod(0o711)
    (tree / "lib/link").symlink_to("/nowhere")
    body = f"""
files = [
  {{ path = "/etc/app.conf", text = "ünï\\n", mode = "4750", owner = "app:www" }},
  {{ path = "/deep/er/file", text = "" }},
  {{ path = "/lib", from = "tree/lib", owner = "guest" }},
]
{SANDBOX}"""
    found = seen(disk(tmp_path, body))
    assert found["/etc/app.conf"] == ("0o104750", 7, 9, "ünï\n".encode())
    assert found["/deep/er/file"] == ("0o100644", 0, 0, b"")
    assert found["/deep"][:3] == ("0o40755", 0, 0)
    # A directory in place of a link to one replaces the link, as in a container's layers.
    assert found["/lib"][:3] == ("0o40755", 10001, 10001)
    assert found["/lib/run"] == ("0o100755", 10001, 10001, b"#!")
    assert found["/lib/link"] == ("0o120777", 10001, 10001, b"/nowhere")
    assert found["/usr/lib/old"] == ("0o100644", 5, 0, b"old")
    assert found["/sandbox"][:3] == ("0o40755", 10001, 10001)


def test_what_is_merged_into_a_directory_leaves_the_rest_of_it_alone(tmp_path: Path) -> None:
    (tmp_path / "tree").mkdir()
    (tmp_path / "tree/new").write_text("new")
    found = seen(disk(tmp_path, 'files = [{ path = "/usr/lib", from = "tree", owner = "app" }]\n'))
    assert found["/usr/lib/new"][1:] == (7, 8, b"new")
    assert found["/usr/lib/old"][1:] == (5, 0, b"old")
    assert found["/usr/lib"][1:3] == (7, 8)


def put(tmp_path: Path, body: str) -> dict[str, tuple[bytes, str]]:
    """Content and link target of what images.toml puts into an image."""
    (image,) = images.parse(
        f'[image.a]\nsource = "oci:layout:t"\n[[image.a.files]]\npath = "/x"\n{body}', tmp_path / "p/images.toml"
    )
    return {
        file.path: (file.content.read_bytes() if isinstance(file.content, Path) else file.content, file.target)
        for file in image.files
    }


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project with links out of it, and what they lead to."""
    (tmp_path / "p/d/e").mkdir(parents=True)
    (tmp_path / "home").mkdir()
    (tmp_path / "home/token").write_text("token")
    (tmp_path / "p/d/plain").write_text("plain")
    for name, target in {
        "p/out": "../home/token", "p/absolute": str(tmp_path / "home/token"), "p/folder": "../home", "p/chain": "out",
        "p/d/out": "../../home/token", "p/d/e/folder": "../../../home", "p/in": "d/plain", "p/din": "d",
        "home/there": "token", "home/away": "../p/d/plain",
    }.items():  # fmt: skip
        (tmp_path / name).symlink_to(target)
    return tmp_path


@pytest.mark.parametrize(
    "name",
    ["out", "absolute", "folder", "chain", "folder/token", "d/out", "d/e/folder/token", "d/../out", "../home/away"],
)
def test_a_link_out_of_its_directory_is_followed_on_purpose_only(project: Path, name: str) -> None:
    with pytest.raises(
        BadInput, match=r"images\.toml:5:1: image\.a\.files\.0\.from: .* is a link to .*: write follow = true"
    ):
        put(project, f'from = "{name}"')
    found = put(project, f'from = "{name}"\nfollow = true')
    assert {content for content, _ in found.values()} & {b"token", b"plain"}


@pytest.mark.parametrize(
    ("name", "path"), [("in", "/x"), ("din", "/x/plain"), ("../home/there", "/x"), ("../home/token", "/x")]
)
def test_links_that_stay_and_names_that_are_none(project: Path, name: str, path: str) -> None:
    assert put(project, f'from = "{name}"')[path][0] in (b"plain", b"token")


def test_links_in_a_directory_are_links_or_followed(project: Path) -> None:
    """Nothing behind a link is read unless `follow` says so."""
    found = put(project, 'from = "d"')
    assert found["/x/out"] == (b"", "../../home/token")
    assert found["/x/e/folder"] == (b"", "../../../home")
    assert b"token" not in {content for content, _ in found.values()}
    found = put(project, 'from = "d"\nfollow = true')
    assert found["/x/out"] == found["/x/e/folder/token"] == found["/x/e/folder/there"] == (b"token", "")
    assert found["/x/e/folder/away"] == (b"plain", "")
    (project / "p/d/e/up").symlink_to("..")
    with pytest.raises(BadInput, match="links in circles"):
        put(project, 'from = "d"\nfollow = true')
    (project / "p/d/nowhere").symlink_to("/no/such")
    with pytest.raises(BadInput, match=r"cannot read .*nowhere|links in circles"):
        put(project, 'from = "d"\nfollow = true')


def test_an_env_file_that_is_a_link_out_of_its_directory(project: Path) -> None:
    (project / "home/token").write_text("A=1\n")
    text = '[image.a]\nsource = "oci:layout:t"\nenv_files = ["{}"]\n'
    with pytest.raises(BadInput, match=r"out is a link to .*home/token, out of its directory: name the file itself"):
        images.parse(text.format("out"), project / "p/images.toml")
    (image,) = images.parse(text.format("../home/token"), project / "p/images.toml")
    assert image.env == ("A=1",)


def test_owners_come_after_files(tmp_path: Path) -> None:
    body = f'files = [{{ path = "/sandbox/mine", text = "", owner = "app" }}]\n{SANDBOX}'
    assert seen(disk(tmp_path, body))["/sandbox/mine"][1:3] == (10001, 10001)


def test_removed_paths(tmp_path: Path) -> None:
    body = 'remove = ["/etc/motd", "/lib/old", "/sandbox"]\nfiles = [{ path = "/sandbox/new", text = "n" }]\n'
    before, found = seen(disk(tmp_path, "", "before")), seen(disk(tmp_path, body))
    assert before.keys() - found.keys() == {"/etc/motd", "/usr/lib/old"}
    assert found.keys() - before.keys() == {"/sandbox/new"}


@pytest.mark.parametrize(
    ("path", "words"),
    [("/etc/modt", "did you mean /etc/motd?"), ("/etc/motd/x", "has no"), ("/no/such", "fix the path")],
)
def test_what_is_not_there_cannot_be_removed(tmp_path: Path, path: str, words: str) -> None:
    with pytest.raises(BadInput, match=rf"remove: the image has no {path}.*") as caught:
        disk(tmp_path, f'remove = ["{path}"]')
    assert words in str(caught.value)


def test_clock_umask_and_modes_of_directories_do_not_matter(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "d").mkdir(parents=True)
    (tree / "d/a").write_text("a")
    (tree / "b").write_text("b")
    body = 'files = [{ path = "/x", from = "tree" }]\n'
    first = disk(tmp_path, body, "first").read_bytes()
    os.utime(tree / "d/a", (1, 1))
    (tree / "d").chmod(0o700)
    (tree / "b").chmod(0o600)
    assert disk(tmp_path, body, "second", umask=0o077).read_bytes() == first


def test_a_file_that_changes_while_it_is_built(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("one")
    text = '[image.a]\nsource = "oci:layout:t"\nsize = "64MiB"\nfiles = [{ path = "/f", from = "f" }]\n'
    (image,) = images.parse(text, tmp_path / "images.toml")
    (tmp_path / "f").write_text("two")
    from imagetool.layout.own_files import own_layer

    with pytest.raises(RootdiskError, match="changed while it was built"):
        own_layer(image.files, image.remove)

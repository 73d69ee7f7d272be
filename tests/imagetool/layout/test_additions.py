"""The layout's additions: files, environment, owners, accounts; and what a build refuses."""

from __future__ import annotations

import ssl
import stat
from collections.abc import Callable

import pytest

from imagetool.layout.additions import Additions, Owner, add, environment, process_record
from imagetool.layout.certificates import check_certificates
from imagetool.tree.model import Directory, File, Layer, Slot, Symlink, Tree
from rootdisk.artifact.format import Process
from rootdisk.errors import BadInput
from rootdisk.oci.fields import Fields
from tests.support.steps import LINEAR, growth

PASSWD = b"root:x:0:0:root:/root:/bin/bash\ndaemon:x:1:1::/:/bin/false\napp:x:1000:1001::/home/app:/bin/sh"


class Image:
    """A small tree, and its only layer's bytes."""

    def __init__(self, **etc: bytes) -> None:
        self.data = b""
        self.tree = Tree(Directory(), [Layer("sha256:base")])
        self.etc = Directory()
        self.tree.root.children[b"etc"] = self.etc
        for name, data in etc.items():
            self.file(self.etc, name.encode(), data)

    def file(self, parent: Directory, name: bytes, data: bytes, mode: int = 0o644) -> File:
        file = File(stat.S_IFREG | mode, layer=0, size=len(data), offset=len(self.data))
        parent.children[name] = file
        self.data += data
        return file

    def add(self, **changes: object) -> bytes:
        additions = Additions(init=b"\x7fELF", process=Process(cmd=("sh",)), **changes)  # type: ignore[arg-type]
        return add(self.tree, lambda file: self.data[file.offset : file.offset + file.size], additions)


def test_the_files_of_layout_1() -> None:
    image = Image()
    data = image.add(env=("A=1", "B=x=y", "A=2\n3"), tls_ca=b"CA")
    room = image.tree.lookup(b"/.rootdisk")
    assert isinstance(room, Directory)
    content = {
        name: data[node.offset : node.offset + node.size]
        for name, node in room.children.items()
        if isinstance(node, File)
    }
    assert content == {
        b"layout": b"1\n",
        b"init": b"\x7fELF",
        b"process": b"cmd=sh\0workdir=/\0stopsignal=SIGTERM\0",
        b"env": b"A=2\n3\0B=x=y\0",
    }
    slot = room.children[b"slot"]
    assert isinstance(slot, Slot)
    assert (slot.size, slot.mode) == (256 << 10, stat.S_IFREG | 0o600)
    assert isinstance(image.tree.lookup(b"/.rootdisk/tls/ca.pem"), File)
    assert image.tree.lookup(b"/.rootdisk/tls/client.pem") is None
    names = image.tree.layers[-1].files
    assert len(names) == 5


def test_a_hook_for_snapshots_is_kept() -> None:
    image = Image()
    room = image.tree.root.children[b".rootdisk"] = Directory(stat.S_IFDIR | 0o777, uid=5)
    hook = image.file(room, b"resumed", b"#!/bin/sh\n", 0o755)
    image.add()
    made = image.tree.lookup(b"/.rootdisk")
    assert isinstance(made, Directory)
    assert (made.uid, made.mode) == (0, stat.S_IFDIR | 0o755)
    assert made.children[b"resumed"] is hook
    assert image.tree.lookup(b"/.rootdisk/init") is not None


@pytest.mark.parametrize("names", [(), ("init",), ("resumed", "slot")])
@pytest.mark.parametrize("kind", ["file", "link"])
def test_an_image_with_a_rootdisk_folder_is_refused(names: tuple[str, ...], kind: str) -> None:
    image = Image()
    room = image.tree.root.children[b".rootdisk"] = Directory()
    for name in names:
        image.file(room, name.encode(), b"x")
    if kind == "link":
        room.children[b"resumed"] = Symlink(b"/bin/sh")
    with pytest.raises(BadInput, match=r"already has /\.rootdisk"):
        image.add()


def test_a_user_is_made_with_its_group_and_owns_everything_below() -> None:
    image = Image(passwd=PASSWD, group=b"root:x:0:\n", shadow=b"root:*:1::::::\n")
    sandbox = Directory()
    image.tree.root.children[b"sandbox"] = sandbox
    program = image.file(sandbox, b"tool", b"x", 0o4755)
    program.xattrs = {b"security.capability": b"cap", b"user.note": b"kept"}
    link = sandbox.children[b"link"] = Symlink(b"../etc/passwd")
    data = image.add(owners=(Owner("/sandbox", "sandbox", create=True),))

    assert {(n.uid, n.gid) for n in (sandbox, program, link)} == {(10001, 10001)}
    assert stat.S_IMODE(program.mode) == 0o755
    assert program.xattrs == {b"user.note": b"kept"}
    assert image.etc.uid == 0

    def text(name: bytes) -> bytes:
        file = image.etc.children[name]
        assert isinstance(file, File)
        return data[file.offset : file.offset + file.size]

    assert text(b"passwd") == PASSWD + b"\nsandbox:x:10001:10001::/sandbox:/sbin/nologin\n"
    assert text(b"group") == b"root:x:0:\nsandbox:x:10001:\n"
    assert text(b"shadow") == b"root:*:1::::::\nsandbox:!:1:0:99999:7:::\n"
    assert b"gshadow" not in image.etc.children


def test_a_known_user_and_numbers() -> None:
    image = Image(passwd=PASSWD, group=b"root:x:0:\nwheel:x:10:\n")
    for name in (b"a", b"b", b"c"):
        image.tree.root.children[name] = Directory()
    image.add(owners=(Owner("/a", "app"), Owner("/b", "7", "9"), Owner("/c", "app", "wheel")))
    owners = [(n.uid, n.gid) for name in (b"a", b"b", b"c") if (n := image.tree.root.children[name])]
    assert owners == [(1000, 1001), (7, 9), (1000, 10)]
    assert isinstance(image.etc.children[b"passwd"], File)
    assert image.etc.children[b"passwd"].layer == 0  # untouched


@pytest.mark.parametrize(
    ("owner", "message"),
    [
        (Owner("/nowhere", "app"), "the image has no /nowhere"),
        (Owner("/etc", "ghost"), "no user ghost"),
        (Owner("/etc", "app", "ghosts"), "no group ghosts"),
        (Owner("/etc", "new", uid=1, create=True), "uid 1 for new user new belongs to daemon"),
        (Owner("/a:b", "new", create=True), "'/a:b' cannot be the home of a new user"),
        (Owner("/a\nroot2:x:0:0::/:", "new", create=True), "cannot be the home of a new user"),
        (Owner("/etc", "a b", create=True), "'a b' cannot be a user name"),
        (Owner("/etc", "a\x1b", create=True), "cannot be a user name"),
        (Owner("/etc", "4294967295"), "'4294967295' is not a user or group number"),
    ],
)
def test_owners_that_cannot_be_set(owner: Owner, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Image(passwd=PASSWD).add(owners=(owner,))


LINKS = {"/sandbox": b"/", "/srv/app": b"..", "/srv/own": b"/.rootdisk", "/etc2": b"etc", "/srv/deep/er": b"../../etc"}


@pytest.mark.parametrize("path", [*LINKS, "/sandbox/etc", "/srv/deep/er/passwd", "/sandbox/", "/./sandbox"])
@pytest.mark.parametrize("create", [False, True])
def test_owners_never_walk_through_a_link(path: str, create: bool) -> None:
    """An image's link would decide what is given away: the whole root, `/.rootdisk` with it."""
    image = Image(passwd=PASSWD)
    for place, target in LINKS.items():
        node = image.tree.root
        *above, last = place.encode().strip(b"/").split(b"/")
        for name in above:
            node = node.children.setdefault(name, Directory())  # type: ignore[assignment]
        node.children[last] = Symlink(target)
    with pytest.raises(BadInput, match=r"owners: /\S+ is a link to \S+ in the image: name the place itself"):
        image.add(owners=(Owner(path, "sandbox", create=create), Owner("/etc", "1")) if create else (Owner(path, "1"),))
    assert all(node.uid == 0 for _, node in image.tree.walk())


def test_a_link_below_is_given_away_and_not_what_it_leads_to() -> None:
    image = Image(passwd=PASSWD)
    image.tree.root.children[b"sandbox"] = Directory()
    link = image.tree.root.children[b"sandbox"].children[b"root"] = Symlink(b"/")  # type: ignore[attr-defined]
    image.add(owners=(Owner("/sandbox", "7"),))
    assert link.uid == 7
    assert image.tree.root.uid == 0


def test_our_own_directory_is_roots_whoever_owns_the_rest() -> None:
    image = Image(passwd=PASSWD)
    image.add(owners=(Owner("/", "7"),))
    owners = {path: node.uid for path, node in image.tree.walk()}
    assert {uid for path, uid in owners.items() if path.startswith(b"/.rootdisk")} == {0}
    assert owners[b"/"] == owners[b"/etc/passwd"] == 7
    for path in ("/.rootdisk", "/.rootdisk/slot", "//./.rootdisk"):
        with pytest.raises(BadInput, match="rootdisk's own place"):
            Image(passwd=PASSWD).add(owners=(Owner(path, "7"),))


@pytest.mark.parametrize("target", [b"/usr/etc", b".rootdisk"])
def test_accounts_that_can_be_put_nowhere(target: bytes) -> None:
    image = Image()
    image.tree.root.children[b"etc"] = Symlink(target)
    image.tree.root.children[b"srv"] = Directory()
    with pytest.raises(BadInput, match="owners: /etc "):
        image.add(owners=(Owner("/srv", "app", create=True),))
    assert b"srv" in image.tree.root.children
    image.tree.root.children.pop(b".rootdisk")
    image.add(owners=(Owner("/srv", "7"),))  # numbers need none


@pytest.mark.parametrize("linked", ["/etc/passwd", "/etc", "both"])
def test_accounts_behind_links_inside_the_image(linked: str) -> None:
    """As Nix has them: read through the link, as the guest does; a user that is made gets a real file in its place."""
    image = Image(passwd=PASSWD, group=b"root:x:0:\n")
    root, real = image.tree.root, Directory()
    files = dict(image.etc.children)
    root.children[b"store"] = real
    if linked != "/etc":
        real.children.update(files)
        for name in files:
            image.etc.children[name] = Symlink(b"../store/" + name)
    if linked != "/etc/passwd":
        root.children[b"private"] = image.etc
        root.children[b"etc"] = Symlink(b"/private")
    root.children[b"srv"] = Directory()
    image.add(owners=(Owner("/srv", "daemon"),))
    assert root.children[b"srv"].uid == 1
    root.children.pop(b".rootdisk")
    image.tree.layers.pop()
    data = image.add(owners=(Owner("/srv", "new", create=True),))
    made = image.etc.children[b"passwd"]
    assert isinstance(made, File)
    assert data[made.offset : made.offset + made.size].startswith(PASSWD)
    if linked != "/etc":
        assert real.children[b"passwd"] is files[b"passwd"]  # what the link led to is as it was


@pytest.mark.parametrize(
    "line", [b"app:x:" + b"9" * 5000 + b":1::/:/bin/sh", b"app:x:\xb2:1::/:/bin/sh", b"app:x:-1:1::/:/"]
)
def test_numbers_in_account_files_that_are_none(line: bytes) -> None:
    with pytest.raises(BadInput, match="owners: user app has no valid number"):
        Image(passwd=line).add(owners=(Owner("/etc", "app"),))


@pytest.mark.parametrize("text", ["9" * 5000, "\u00b2", "4294967295", "1:" + "9" * 5000, "\u0663"])
def test_numbers_of_owners_that_are_none(text: str) -> None:
    with pytest.raises(BadInput, match="owners: "):
        Image(passwd=PASSWD).add(owners=(Owner.parse("/etc", text),))


def test_accounts_cost_what_they_hold_once() -> None:
    """Not once for each owner: an image may have a million accounts, and a build many owners."""

    def work(count: int) -> Callable[[], object]:
        lines = b"".join(b"u%d:x:%d:%d::/:/bin/sh\n" % (n, n, n) for n in range(count))
        image = Image(passwd=lines, group=lines)
        owners = tuple(Owner(f"/d{n}", f"new{n}", create=True) for n in range(count // 4))
        return lambda: image.add(owners=owners)

    assert growth(work, 200) < LINEAR


def test_an_image_without_accounts_gets_them() -> None:
    image = Image()
    image.add(owners=(Owner("/sandbox/deep", "sandbox", create=True),))
    made = image.tree.lookup(b"/sandbox/deep")
    assert isinstance(made, Directory)
    assert made.uid == 10001
    assert isinstance(image.etc.children[b"passwd"], File)


def test_account_files_that_are_no_files() -> None:
    image = Image()
    image.etc.children[b"passwd"] = Symlink(b"/tmp")
    image.tree.root.children[b"tmp"] = Directory()
    with pytest.raises(BadInput, match="not a plain file"):
        image.add(owners=(Owner("/etc", "x", create=True),))
    image.etc.children[b"passwd"] = Symlink(b"/nowhere")  # then there are none: a new file takes its place
    image.tree.root.children.pop(b".rootdisk")
    image.add(owners=(Owner("/etc", "x", create=True),))
    assert isinstance(image.etc.children[b"passwd"], File)


def test_process_and_environment_records() -> None:
    process = Process(("python3", "-m"), ("app", "a=b\nc"), "/srv", "app:www", "SIGINT")
    assert process_record(process) == (
        b"entrypoint=python3\0entrypoint=-m\0cmd=app\0cmd=a=b\nc\0workdir=/srv\0stopsignal=SIGINT\0user=app:www\0"
    )
    more = process._replace(volumes=("/data", "/var/lib/db"), pid1=True)
    assert process_record(more) == process_record(process) + b"volume=/data\0volume=/var/lib/db\0pid1=1\0"
    assert Process.of(Fields(more.to_json(), "process")) == more
    assert Process.of(Fields(process.to_json(), "process")) == process
    assert environment(("Q='\"$x\n",)) == b"Q='\"$x\n\0"
    for wrong in ("novalue", "=x", "A=\0"):
        with pytest.raises(BadInput):
            environment((wrong,))


def test_certificates_only() -> None:
    import trustme

    authority = trustme.CA()
    leaf = authority.issue_cert("rootdisk.test")
    certificate = authority.cert_pem.bytes()
    text = b"# a comment\r\n" + certificate + leaf.cert_chain_pems[0].bytes()
    assert check_certificates(text, "tls.ca").count(b"BEGIN CERTIFICATE") == 2
    with pytest.raises(BadInput, match=r"private key.*runner boot --tls-key"):
        check_certificates(certificate + leaf.private_key_pem.bytes(), "tls.client")
    with pytest.raises(BadInput, match="no PEM certificate"):
        check_certificates(b"nothing", "tls.ca")
    with pytest.raises(BadInput, match="certificate 1 is damaged"):
        check_certificates(certificate.replace(b"M", b"N", 3), "tls.ca")
    der = ssl.PEM_cert_to_DER_cert(certificate.decode())
    for damaged in (
        der[:-1],
        der + b"\0",
        der + der,
        der[4:],
        der[:1] + b"\x80" + der[2:],
        der[:5] + b"\xff" + der[6:],
        b"",
    ):
        with pytest.raises(BadInput):
            check_certificates(ssl.DER_cert_to_PEM_cert(damaged).encode(), "tls.ca")

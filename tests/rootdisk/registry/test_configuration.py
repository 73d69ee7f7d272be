"""registries.conf as podman reads it: which table counts, which places follow from it, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rootdisk.errors import BadInput
from rootdisk.oci.reference import parse_reference
from rootdisk.registry import configuration
from rootdisk.registry.configuration import FILE_MAX_BYTES, Place, Places, load, parse, places

CONF = """
unqualified-search-registries = ["docker.io"]
short-name-mode = "enforcing"
unknown = 1

[aliases]
"alpine" = "docker.io/library/alpine"

[[registry]]
prefix = "example.com/foo"
location = "internal.example.net/bar"
insecure = true

[[registry.mirror]]
location = "mirror-0.example/for-foo"

[[registry.mirror]]
location = "mirror-1.example:5000/foo/"
insecure = true
pull-from-mirror = "digest-only"

[[registry.mirror]]
location = "mirror-2.example"
pull-from-mirror = "tag-only"

[[registry]]
location = "example.com/foo/secret"
blocked = true

[[registry]]
prefix = "*.wild.example"
[[registry.mirror]]
location = "cache.example/wild"

[[registry]]
location = "docker.io"
mirror-by-digest-only = true
[[registry.mirror]]
location = "hub.example"
"""
SHA = "sha256:" + "ab" * 32


def of(name: str, conf: str = CONF) -> Places:
    return places(parse_reference(name), parse(conf.encode(), "a.conf"))


def test_where_an_image_is_asked_for() -> None:
    found = of("example.com/foo/app:1")
    assert found.origin == Place("internal.example.net", "bar/app", True)
    assert found.mirrors == (
        Place("mirror-0.example", "for-foo/app"),
        Place("mirror-1.example:5000", "foo/app", True, "digest-only"),
        Place("mirror-2.example", "app", False, "tag-only"),
    )
    assert [place.registry for place in of(f"example.com/foo/app@{SHA}").mirrors] == [
        "mirror-0.example",
        "mirror-1.example:5000",
    ]
    assert of("alpine:3").mirrors == (Place("hub.example", "library/alpine", False, "digest-only"),)


@pytest.mark.parametrize(
    "name", ["example.com/foobar/app", "example.com/other", "example.com:5000/foo/app", "wild.example/a"]
)
def test_a_prefix_ends_at_a_part(name: str) -> None:
    reference = parse_reference(name)
    assert of(name) == Places((), Place(reference.registry, reference.repository))


def test_wildcards() -> None:
    for host in ("a.wild.example", "a.b.wild.example", "a.wild.example:5000"):
        assert of(f"{host}/team/app") == Places((Place("cache.example", "wild/team/app"),), Place(host, "team/app"))
    conf = '[[registry]]\nprefix = "*.wild.example"\nlocation = "one.example/x"\n'
    assert of("a.wild.example/team/app", conf).origin == Place("one.example", "x/team/app")


def test_wildcards_with_a_path_and_beside_others() -> None:
    conf = '[[registry]]\nprefix = "*.wild.example/team"\nblocked = true\n[[registry]]\nprefix = "*.example"\nlocation = "any.example"\n'
    with pytest.raises(BadInput, match=r"blocks \*\.wild\.example/team"):
        of("a.wild.example/team/app", conf)
    assert of("a.wild.example/teams/app", conf).origin == Place("any.example", "teams/app")
    assert of("wild.example/team/app", conf).origin == Place("any.example", "team/app")
    one = '[[registry]]\nprefix = "*.b.example"\nlocation = "wild.example"\n[[registry]]\nprefix = "a.b.example"\nlocation = "exact.example"\n'
    assert of("a.b.example/x", one).origin == Place("exact.example", "x")
    assert of("c.b.example/x", one).origin == Place("wild.example", "x")


def test_the_longest_prefix_counts() -> None:
    with pytest.raises(BadInput, match=r"a\.conf blocks example\.com/foo/secret"):
        of("example.com/foo/secret/app")
    conf = '[[registry]]\nprefix = "a.example/x"\nlocation = "b.example/y"\n[[registry]]\nprefix = "a.example/x/app:2"\nblocked = true\n'
    assert of("a.example/x/app:1", conf).origin == Place("b.example", "y/app")
    with pytest.raises(BadInput, match=r"blocks a\.example/x/app:2"):
        of("a.example/x/app:2", conf)


def test_a_host_has_one_name_in_any_case() -> None:
    conf = '[[registry]]\nprefix = "Bad.example/Team"\nlocation = "x.example"\nblocked = true\n[[registry]]\nlocation = "bad.example/a"\nblocked = true\n'
    for name in ("bad.example/a/b", "BAD.Example/a/b"):
        with pytest.raises(BadInput, match=r"blocks bad\.example/a"):
            of(name, conf)
    old = "[registries.block]\nregistries = ['B.example']\n"
    with pytest.raises(BadInput, match=r"blocks b\.example"):
        of("b.exAmple/x", old)


def test_a_file_that_would_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(configuration.NAMED_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    (tmp_path / "containers/registries.conf.d").mkdir(parents=True)
    for make in (os.mkfifo, lambda at: at.symlink_to(at)):
        path = tmp_path / "containers/registries.conf.d/a.conf"
        path.unlink(missing_ok=True)
        make(path)
        with pytest.raises(BadInput, match=r"a\.conf: "):
            load()


def test_a_byte_order_mark_is_ignored() -> None:
    conf = '\ufeff[[registry]]\nlocation = "a.example"\nblocked = true\n'
    with pytest.raises(BadInput, match=r"blocks a\.example"):
        of("a.example/x", conf)


def test_version_1() -> None:
    conf = "[registries.insecure]\nregistries = ['a.example:5000']\n[registries.block]\nregistries = ['b.example']\n"
    assert of("a.example:5000/x", conf).origin == Place("a.example:5000", "x", True)
    with pytest.raises(BadInput, match=r"blocks b\.example"):
        of("b.example/x", conf)


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ("[[registry]", "a.conf: "),
        ("\xff", "a.conf: "),
        ('registry = "x"', "a.conf: registry is not an array of tables: write [[registry]]"),
        ("[[registry]]\ninsecure = true", "registry 1: has neither prefix nor location"),
        ('[[registry]]\nlocation = "https://a.example"', "registry 1: location: 'https://a.example' starts with a scheme"),
        ('[[registry]]\nlocation = "a.example"\nblocked = "yes"', "registry 1: blocked is not true or false"),
        ('[[registry]]\nlocation = 1', "registry 1: location is not a string"),
        ('[[registry]]\nlocation = "a b"', "registry 1: location: 'a b' is not a name"),
        ('[[registry]]\nlocation = "a.example"\n[[registry.mirror]]\ninsecure = true', "mirror 1: location: is empty"),
        ('[[registry]]\nlocation = "a.example"\n[[registry.mirror]]\nlocation = "m"\npull-from-mirror = "never"', "write all, digest-only or tag-only"),
        ('[[registry]]\nlocation = "a"\nmirror-by-digest-only = true\n[[registry.mirror]]\nlocation = "m"\npull-from-mirror = "all"', "contradicts"),
        ("registries = 1", "registries is not a table"),
        ("[registries]\nblock = 1", "block is not a table"),
        ("[registries.block]\nregistries = 'evil.example'", "registries.block: registries is not an array"),
        ('[[registry]]\nprefix = "*"\nblocked = true', "prefix: '*' has a *: a prefix may begin with *."),
        ('[[registry]]\nprefix = "*.*"\nblocked = true', "prefix: '*' has a *"),
        ('[[registry]]\nprefix = "a.*.example"\nblocked = true', "has a *"),
        ("[registries.block]\nregistries = ['b']\n[[registry]]\nlocation = 'a'", "keep one of them"),
    ],
)  # fmt: skip
def test_what_is_malformed_is_one_line(conf: str, message: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse(conf.encode("latin-1"), "a.conf")
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "place",
    ['prefix = "{}"', 'location = "{}"', 'location = "a.example"\n[[registry.mirror]]\nlocation = "{}"'],
)
@pytest.mark.parametrize(
    "name", ["me:secret@a.example", "https://me:secret@a.example", "me:secret@a.example/x@sha256:0"]
)
def test_credentials_are_refused_and_not_shown(place: str, name: str) -> None:
    with pytest.raises(BadInput, match=r"has an @: credentials belong into auth.json") as caught:
        parse(f"[[registry]]\n{place.format(name)}".encode(), "a.conf")
    assert "secret" not in str(caught.value)


def test_a_prefix_with_a_digest() -> None:
    digest = "sha256:" + "0" * 64
    with pytest.raises(BadInput, match="blocks"):
        of(f"a.example/x@{digest}", f'[[registry]]\nprefix = "a.example/x@{digest}"\nblocked = true')


def test_bounds() -> None:
    with pytest.raises(BadInput, match="more than 1048576 bytes"):
        parse(b"#" * (FILE_MAX_BYTES + 1), "a.conf")
    with pytest.raises(BadInput):
        parse(b"a = " + b"[" * 100_000, "a.conf")
    with pytest.raises(BadInput, match="not a valid repository"):
        of("a.example/x", '[[registry]]\nprefix = "a.example"\nlocation = "b.example/UPPER"\n')


def test_files_in_their_order(nobody: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    system, own = tmp_path / "etc", tmp_path / ".config/containers"
    monkeypatch.setattr(configuration, "SYSTEM", system)
    for folder in (system, own):
        (folder / "registries.conf.d").mkdir(parents=True)

    def write(path: Path, location: str) -> None:
        path.write_text(f'[[registry]]\nprefix = "a.example"\nlocation = "{location}"\n')

    def location() -> str:
        return load()["a.example"].location

    assert load() == {}
    write(system / "registries.conf", "system")
    assert location() == "system"
    write(own / "registries.conf", "own")
    assert location() == "own"
    write(system / "registries.conf.d/2.conf", "system-2")
    write(system / "registries.conf.d/1.conf", "system-1")
    write(system / "registries.conf.d/3.conf.bak", "not read")
    (system / "registries.conf.d/4.conf").mkdir()
    assert location() == "system-2"
    write(own / "registries.conf.d/0.conf", "own-0")
    assert location() == "own-0"
    (own / "registries.conf.d/0.conf").unlink()
    write(tmp_path / "named", "named")
    monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", str(tmp_path / "named"))
    assert location() == "system-2"
    monkeypatch.setenv("CONTAINERS_REGISTRIES_CONF", str(tmp_path / "none"))
    with pytest.raises(BadInput, match="none: No such file or directory"):
        load()

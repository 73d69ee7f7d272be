"""The derivation key: what changes it, what does not, and how a change is explained."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from imagetool.build import derivation
from imagetool.config.images import Image, ProcessChange
from imagetool.guest.programs import Guest
from imagetool.layout.additions import Owner
from rootdisk.oci.documents import Digest, Platform
from rootdisk.oci.reference import parse_reference

IMAGE = Image("a", parse_reference("x.y/a:1"), (), platform=Platform.parse("amd64"), env=("A=1",))
SOURCE = Digest.of(b"source")
GUEST = Guest(Digest.of(b"init"), Digest.of(b"kernel"), Digest.of(b"initramfs"))
ZSTD = {"zstandard": "0.25.0", "level": "3"}


def key(image: Image = IMAGE, source: Digest = SOURCE, guest: Guest = GUEST, zstd: dict[str, str] = ZSTD) -> str:
    return derivation.derivation_key(derivation.inputs(image, source, guest, zstd))


def test_the_key_is_known() -> None:
    """A fixed value: a change of it is a rebuild of everybody's disks, and must be meant."""
    assert key() == "6d5b9caa677f910bc8b4de411d6fb09c068849c542c52fc774f8f5f08399f98b"


@pytest.mark.parametrize(
    "change",
    [
        {"name": "b"},
        {"version": "9"},
        {"publish": (parse_reference("x.y/z"),)},
        {"plain_http": True},
        {"source": parse_reference("mirror.y/a:1")},
    ],
)
def test_names_and_places_are_no_inputs(change: dict[str, Any]) -> None:
    assert key(replace(IMAGE, **change)) == key()


def test_everything_else_is() -> None:
    changes: list[dict[str, Any]] = [
        {"size": 1 << 30},
        {"memory": 1 << 30},
        {"cpus": 2},
        {"env": ("A=2",)},
        {"platform": Platform.parse("arm64")},
        {"tls_ca": b"x"},
        {"tls_client": b"x"},
        {"owners": (Owner("/s", "s"),)},
        {"owners": (Owner("/s", "s", create=True),)},
        {"process": ProcessChange(cmd=())},
        {"labels": {"a": "b"}},
    ]
    keys = [key(), *(key(replace(IMAGE, **change)) for change in changes)]
    keys += [
        key(source=Digest.of(b"x")),
        key(guest=GUEST._replace(init=SOURCE)),
        key(guest=GUEST._replace(kernel=None)),
    ]
    keys += [key(guest=GUEST._replace(initramfs=None)), key(zstd={**ZSTD, "level": "4"})]
    assert len(set(keys)) == len(keys)


def test_explain() -> None:
    before = derivation.inputs(IMAGE, SOURCE, GUEST, ZSTD)

    def said(**changes: Any) -> list[str]:
        return list(
            map(str, derivation.explain(before, derivation.inputs(replace(IMAGE, **changes), SOURCE, GUEST, ZSTD)))
        )

    assert said() == []
    assert said(cpus=2, env=("B=2", "A=1")) == ["recipe.cpus: 1 -> 2", "recipe.env.B: (none) -> (a value)"]
    assert said(owners=(Owner("/s", "s"),))[0] == "recipe.owners./s.create: (none) -> false"


def test_explain_never_shows_what_a_variable_holds() -> None:
    after = derivation.inputs(replace(IMAGE, env=("A=another", "B=hidden")), SOURCE, GUEST, ZSTD)
    changes = derivation.explain(derivation.inputs(IMAGE, SOURCE, GUEST, ZSTD), after)
    assert list(map(str, changes)) == ["recipe.env.A: another value", "recipe.env.B: (none) -> (a value)"]
    assert "another" not in repr(changes)
    assert "hidden" not in repr(changes)


def test_explain_says_something_of_every_change_of_the_key() -> None:
    """Of the order too, which decides the bytes."""
    one, other = (replace(IMAGE, env=env) for env in (("A=1", "B=1"), ("B=1", "A=1")))
    assert key(one) != key(other)
    assert derivation.explain(*(derivation.inputs(image, SOURCE, GUEST, ZSTD) for image in (one, other)))

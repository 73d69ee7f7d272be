"""Documents that lie about numbers, texts and depth: one line each, before any of it costs memory."""

from __future__ import annotations

import contextlib
import copy
import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rootdisk.artifact.format import ArtifactConfig
from rootdisk.errors import BadInput, RootdiskError, Unsupported
from rootdisk.oci.documents import Digest, Index, Manifest, Platform, canonical_json
from rootdisk.oci.fields import parse_value
from tests.support.artifacts import example_config

GOOD = example_config().to_json()
DESCRIPTOR = {"mediaType": "t", "digest": str(Digest.of(b"x")), "size": 1}
MANIFEST = {"schemaVersion": 2, "config": DESCRIPTOR, "layers": [DESCRIPTOR], "annotations": {"a": "b"}}
INDEX = {"schemaVersion": 2, "manifests": [{**DESCRIPTOR, "platform": {"os": "linux", "architecture": "arm64"}}]}

NUMBERS: list[Any] = [-1, True, False, 1.0, 1.5, "1", None, [], {}, 1 << 62, 10**18]
TEXTS: list[Any] = [1, True, None, [], {}, "a\0b", "x" * (5 << 19)]

CASES: list[tuple[str, list[Any]]] = [
    ("format", [*NUMBERS, 0, 2]),
    ("layout", [*NUMBERS, 2]),
    ("disk.size", [*NUMBERS, 0, (16 << 40) + 1]),
    ("disk.digest", [*TEXTS, "", "sha256:", "../../x", "sha256:" + "0" * 63]),
    ("disk.uuid", [7, "x" * 37, "\x1b[2J", "../x"]),
    ("disk.slots", [None, {}, "slot", [1], [{}], [{"name": "slot", "offset": 65536, "length": 65536}] * 2, [{}] * 17]),
    ("disk.slots.0.offset", [*NUMBERS, 0, 65537, 4096]),
    ("disk.slots.0.length", [*NUMBERS, 0, 65537, 4 << 30, (16 << 20) + 65536]),
    ("disk.slots.0.name", [*TEXTS, "", "a b", "\x1b]0;x\x07", "x" * 65]),
    ("disk.layers", [{}, "x", [1], [{"diff_id": "x", "first_inode": 1}] * 10_001]),
    ("disk.layers.0", [{"diff_id": "x", "first_inode": wrong} for wrong in (-1, 1 << 32, "1", 1.5, True, None)]),
    ("process", [None, [], "x"]),
    ("process.entrypoint", ["sh", {}, [1], ["a\0b"], ["x" * (129 << 10)], ["x"] * 10_001]),
    ("process.cmd", ["sh", {"a": 1}, [None], ["a\0b"], [["x"]]]),
    ("process.workdir", [1, [], "a\0b", "/" + "x" * 4096]),
    ("process.user", [1, "a\0b", "x" * 257]),
    ("process.stop_signal", [15, "a\0b", "x" * 33]),
    ("boot", [None, [], 1]),
    ("boot.cmdline", [1, "a\0b", "quiet\n", "\x1b[2J", "é", "\u202e", "x" * 1025]),
    ("boot.memory_mib", [*NUMBERS, 0, (16 << 20) + 1]),
    ("boot.cpus", [*NUMBERS, 0, 256, 1 << 31]),
    ("boot.chunks", ["1", {}, ["1"], [-1], [True], [1.0], [1 << 20]]),
    ("derivation", [None, [], "x"]),
    ("derivation.key", [*TEXTS, "", "0" * 63, "g" * 64, "0" * 64 + "\n"]),
    ("derivation.inputs", [None, [], "x"]),
    ("source.reference", [1, "a\0b", "x" * 4097]),
    ("source.digest", [1, "a\0b", "x" * 257]),
    ("writer", [[], "x", {"a": 1}, {"a": "b\0"}, {"a\0": "b"}, {str(n): "" for n in range(65)}]),
    ("labels", [[], "x", {"a": 1}, {"a": []}, {"a": "b\0"}, {"a": "x" * ((1 << 20) + 1)}]),
    ("platform", [None, [], "linux/amd64"]),
    ("platform.os", [1, {}, "li\x1bnux", "x" * 65]),
    ("platform.architecture", [1, [], "a/b", "x" * 65]),
    ("platform.variant", [1, "\n"]),
]  # fmt: skip


def changed(path: str, value: Any) -> bytes:
    document: Any = copy.deepcopy(GOOD)
    document["disk"]["layers"] = [{"diff_id": "sha256:1", "first_inode": 11}]
    *parents, last = path.split(".")
    inner = document
    for key in parents:
        inner = inner[int(key) if key.isdigit() else key]
    inner[int(last) if last.isdigit() else last] = value
    return json.dumps(document).encode()


def one_line(action: Callable[[], object], kind: type[RootdiskError] = BadInput) -> str:
    with pytest.raises(kind) as failed:
        action()
    assert str(failed.value).isprintable()
    assert len(str(failed.value)) < 600
    return str(failed.value)


@pytest.mark.parametrize(("path", "values"), CASES, ids=[path for path, _ in CASES])
def test_wrong_values_of_a_config(path: str, values: list[Any]) -> None:
    for value in values:
        one_line(lambda value=value: ArtifactConfig.parse(changed(path, value)))  # type: ignore[misc]


def test_the_largest_values_of_a_config() -> None:
    for path, value in (
        ("disk.size", 16 << 40),
        ("boot.memory_mib", 16 << 20),
        ("boot.cpus", 255),
        ("boot.cmdline", "x" * 1024),
        ("process.entrypoint", ["x" * (128 << 10)]),
        ("labels", {"a": "x" * (1 << 20), "b": None}),
        ("layout", 0),
    ):
        ArtifactConfig.parse(changed(path, value))


@pytest.mark.parametrize(
    "change",
    [
        {"mediaType": "a\r\nX: y"}, {"mediaType": "é"}, {"mediaType": 1}, {"mediaType": "x" * 256}, {"mediaType": " "}, {"mediaType": None},
        {"artifactType": 1}, {"artifactType": "\x1b[2J"}, {"artifactType": "a\nb"}, {"size": 1 << 63}, {"size": 1.0}, {"size": None},
        {"annotations": []}, {"annotations": {"a": 1}}, {"annotations": {"a": "x" * ((1 << 20) + 1)}}, {"platform": []},
        {"platform": {"os": ["linux"]}}, {"platform": {"os": "\x1b"}}, {"digest": 1}, {"digest": None},
    ],
    ids=lambda change: repr(change)[:40],
)  # fmt: skip
def test_wrong_values_of_a_manifest_and_an_index(change: dict[str, Any]) -> None:
    if change != {"mediaType": None}:  # Docker takes a config without a type
        one_line(lambda: Manifest.parse(json.dumps({**MANIFEST, "config": {**DESCRIPTOR, **change}}).encode()))
    one_line(lambda: Manifest.parse(json.dumps({**MANIFEST, "layers": [{**DESCRIPTOR, **change}]}).encode()))
    one_line(lambda: Manifest.parse(json.dumps({**MANIFEST, "subject": {**DESCRIPTOR, **change}}).encode()))
    one_line(lambda: Index.parse(json.dumps({**INDEX, "manifests": [{**DESCRIPTOR, **change}]}).encode()))


@pytest.mark.parametrize(
    "change",
    [{"schemaVersion": 2.0}, {"schemaVersion": True}, {"schemaVersion": "2"}, {"schemaVersion": 1 << 60}, {"mediaType": 1},
     {"mediaType": "a\nb"}, {"annotations": "x"}, {"layers": {}}, {"layers": None}, {"layers": [None]}],
    ids=repr,
)  # fmt: skip
def test_wrong_values_of_a_whole_manifest(change: dict[str, Any]) -> None:
    one_line(lambda: Manifest.parse(json.dumps({**MANIFEST, **change}).encode()))
    assert Manifest.parse(json.dumps(MANIFEST).encode()).layers


def test_a_media_type_may_have_parameters() -> None:
    kind = "application/vnd.docker.container.image.rootfs.diff+x-gtar; charset=utf-8"
    assert Manifest.parse(json.dumps({**MANIFEST, "mediaType": kind}).encode()).media_type == kind


TWICE = b'{"schemaVersion": 2, "layers": [], "layers": [], "config": {}}'
AMBIGUOUS = {
    "a key twice": TWICE,
    "deep": b'{"a":' * 70 + b"1" + b"}" * 70,
    "deep lists": b'{"a":' + b"[" * 70 + b"]" * 70 + b"}",
    "very deep": b"[" * 100_000,
    "NaN": b'{"a": NaN}',
    "Infinity": b'{"a": -Infinity}',
    "a huge number": b'{"a": 1' + b"0" * 400 + b"}",
    "a number past 64 bits": b'{"a": 9223372036854775808}',
    "a number of 5000 digits": b'{"a": ' + b"9" * 5000 + b"}",
    "a lone surrogate": b'{"a": "\\ud800"}',
    "a lone surrogate in a key": b'{"\\uDC00": 1}',
    "UTF-16": '{"a": 1}'.encode("utf-16"),
    "UTF-8 with a mark": b"\xef\xbb\xbf{}",
    "Latin-1": b'{"a": "\xe9"}',
    "many values": b"[" + b"[]," * 500_000 + b"[]]",
    "many objects": b"[" + b'{"a":0},' * 400_000 + b"0]",
    "not an object": b"[]",
    "empty": b"",
}  # fmt: skip


@pytest.mark.parametrize("name", AMBIGUOUS)
def test_one_text_has_one_meaning(name: str) -> None:
    raw = AMBIGUOUS[name]
    for parse in (Manifest.parse, Index.parse, ArtifactConfig.parse):
        one_line(lambda parse=parse: parse(raw))  # type: ignore[misc]


def test_a_surrogate_pair_is_a_character() -> None:
    assert parse_value(b'{"a": "\\ud83d\\ude00"}', "x", 100) == {"a": "\N{GRINNING FACE}"}


documents = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
)


@given(st.sampled_from([path for path, _ in CASES]), documents)
def test_no_value_brings_the_config_down(path: str, value: Any) -> None:
    found = None
    with contextlib.suppress(RootdiskError):
        found = ArtifactConfig.parse(changed(path, value))
    if found is not None:
        canonical_json(found.to_json())
        assert Platform.of({**found.platform._asdict()}) == found.platform


def test_formats_of_the_future_are_named() -> None:
    assert "artifact format 2" in one_line(lambda: ArtifactConfig.parse(changed("format", 2)), Unsupported)


BOMBS = {
    "values": "b'[' + b'[],' * 1_300_000 + b'[]]'",
    "objects": "b'[' + b'{\"a\":0},' * 500_000 + b'0]'",
    "numbers": "b'[' + b'0,' * 2_000_000 + b'0]'",
    "depth": "b'[' * (4 << 20)",
    "slot": "json.dumps({**good, 'disk': {**good['disk'], 'size': 16 << 40, 'slots': [dict(name='slot', offset=65536, length=4 << 30)]}}).encode()",
}


@pytest.mark.parametrize("name", BOMBS)
def test_what_a_bomb_costs(name: str) -> None:
    code = f"""
import json, resource
from runner.disk import slot
from rootdisk.artifact.format import ArtifactConfig
from rootdisk.errors import RootdiskError
from tests.support.artifacts import example_config
good = example_config().to_json()
raw = {BOMBS[name]}
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
try:
    slot.pack([], ArtifactConfig.parse(raw).slot().length)
except RootdiskError:
    pass
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) >> 10)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert int(done.stdout) < 100, f"{done.stdout} MiB"

"""Receipts: what is read is exactly what was written, by this version; anything else means that it is made again."""

from __future__ import annotations

import copy
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from imagetool.build.receipts import (
    RECEIPTS,
    ArtifactReceipt,
    BuiltReceipt,
    DiskReceipt,
    InitReceipt,
    KernelReceipt,
    PublishedReceipt,
    SourceReceipt,
)
from imagetool.receipts import MAX_BYTES, Damaged, Receipt, check_file, load, save, write_receipt
from rootdisk.artifact.format import Process, SlotExtent
from rootdisk.artifact.layers import LayerInodes
from rootdisk.errors import RootdiskError
from rootdisk.oci.documents import Digest

KEY, ONE = "ab" * 32, Digest.of(b"1")
SAMPLES: tuple[Receipt, ...] = (
    SourceReceipt("oci:layout:t", ONE, "linux/amd64", (str(ONE),)),
    InitReceipt(ONE),
    KernelReceipt(ONE, Digest.of(b"2"), "6.12.1-cloud-amd64"),
    KernelReceipt(),
    DiskReceipt(
        key=KEY,
        inputs={"source": str(ONE), "recipe": {"env": ["A=1"]}},
        size=1 << 30,
        digest=ONE,
        blobs=((ONE, 9), (Digest.of(b"2"), 10)),
        slots=(SlotExtent("slot", 65536, 65536),),
        layers=(LayerInodes(str(ONE), 11),),
        uuid="971bd09b-26f4-42b3-be09-30f5186d89c1",
        process=Process(("/bin/sh",), ("-c", "true"), "/srv", "app"),
        labels={"a": "b"},
        source_digest=str(ONE),
        chunks_new=1,
        chunks_reused=2,
        writer={"rootdisk": "0.1"},
        files={"rootfs.ext4.chunks": str(ONE)},
    ),
    BuiltReceipt(KEY, {"source": str(ONE)}, (str(ONE),), ONE, 19, 1 << 30, 1, 2),
    BuiltReceipt(KEY, {"source": str(ONE)}, (str(ONE),), ONE, 19, 1 << 30, 0, 3, "registry.example/a"),
    ArtifactReceipt(ONE, f"key-{KEY[:32]}", 19),
    PublishedReceipt(ONE, ("oci:/a:1", "registry.example/a:1")),
)
OTHERS: tuple[Any, ...] = (None, True, 0, -1, 1 << 70, 1.5, "", "x", [], ["x"], [[]], {}, {"x": 1})


def test_every_kind_has_a_sample() -> None:
    assert {type(sample) for sample in SAMPLES} == set(RECEIPTS)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: type(sample).__name__)
def test_what_was_written_is_read(tmp_path: Path, sample: Receipt) -> None:
    save(tmp_path / "receipt.json", sample)
    assert load(tmp_path / "receipt.json", type(sample)) == sample


def places(value: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every way to a value in a JSON value."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, inner in items:
        yield (*at, key)
        yield from places(inner, (*at, key))


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: type(sample).__name__)
def test_each_field_missing_or_of_another_type(tmp_path: Path, sample: Receipt) -> None:
    """It is refused; or, where the other value may be one as well (an input, a label), it is read as it stands there."""
    path, right = tmp_path / "receipt.json", sample.to_json()
    refused = 0
    for at in places(right):
        for other in ("missing", *OTHERS):
            value = copy.deepcopy(right)
            inside = value
            for key in at[:-1]:
                inside = inside[key]
            if other == "missing":
                del inside[at[-1]]
            else:
                inside[at[-1]] = other
            write_receipt(path, {"format": sample.FORMAT, **value})
            try:
                assert load(path, type(sample)).to_json() == value
            except Damaged:
                refused += 1
            if len(at) == 1 and other == "missing":
                with pytest.raises(Damaged):
                    load(path, type(sample))
    assert refused > 10 * len(right)


@pytest.mark.parametrize("sample", SAMPLES, ids=lambda sample: type(sample).__name__)
@pytest.mark.parametrize("version", [0, -1, 2, 1 << 40, "1", None, 1.0, True, [], {}])
def test_each_other_version(tmp_path: Path, sample: Receipt, version: Any) -> None:
    path = tmp_path / "receipt.json"
    write_receipt(path, {"format": version, **sample.to_json()})
    with pytest.raises(Damaged):
        load(path, type(sample))
    write_receipt(path, sample.to_json())  # from before there were versions
    with pytest.raises(Damaged, match="an older rootdisk's"):
        load(path, type(sample))


def test_one_field_more_is_another_version(tmp_path: Path) -> None:
    path = tmp_path / "receipt.json"
    write_receipt(path, {"format": 1, "digest": str(ONE), "more": 1})
    with pytest.raises(Damaged):
        load(path, InitReceipt)


@pytest.mark.parametrize(
    "raw", [b"", b"{", b"null", b"[]", b"1", b'"x"', b"\xff", b"{}", b"[" * 5000, b'{"digest": NaN}']
)
def test_what_is_no_receipt(tmp_path: Path, raw: bytes) -> None:
    path = tmp_path / "receipt.json"
    path.write_bytes(raw)
    for kind in RECEIPTS:
        with pytest.raises(Damaged):
            load(path, kind)


def test_cut_off_anywhere(tmp_path: Path) -> None:
    path = tmp_path / "receipt.json"
    save(path, SAMPLES[4])
    whole = path.read_bytes()
    for length in range(len(whole) - 2):
        path.write_bytes(whole[:length])
        with pytest.raises(Damaged):
            load(path, DiskReceipt)


def test_a_receipt_of_another_kind(tmp_path: Path) -> None:
    path = tmp_path / "receipt.json"
    for sample in SAMPLES:
        save(path, sample)
        for kind in set(RECEIPTS) - {type(sample)}:
            with pytest.raises(Damaged):
                load(path, kind)


def test_a_missing_receipt_is_not_a_damaged_one(tmp_path: Path) -> None:
    with pytest.raises(RootdiskError, match="is missing: doit build makes it") as failed:
        load(tmp_path / "receipt.json", InitReceipt)
    assert not isinstance(failed.value, Damaged)
    (tmp_path / "directory").mkdir()
    with pytest.raises(Damaged):
        load(tmp_path / "directory", InitReceipt)


IN_ITS_PLACE: dict[str, Callable[[Path], object]] = {
    "FIFO": os.mkfifo,
    "directory": Path.mkdir,
    "link": lambda path: path.symlink_to("other"),
    "broken link": lambda path: path.symlink_to("nowhere"),
    "link to itself": lambda path: path.symlink_to(path.name),
    "endless": lambda path: path.symlink_to("/dev/zero"),
    "huge": lambda path: path.write_bytes(bytes(MAX_BYTES + 1)),
}


@pytest.mark.parametrize("kind", IN_ITS_PLACE)
def test_what_is_in_the_place_of_a_receipt(tmp_path: Path, kind: str) -> None:
    """It is neither waited for nor followed nor read without end, and a new one takes its place, except of a directory."""
    receipt = InitReceipt(ONE)
    save(tmp_path / "other", receipt)
    path = tmp_path / "receipt.json"
    IN_ITS_PLACE[kind](path)
    with pytest.raises(Damaged):
        load(path, InitReceipt)
    with pytest.raises(Damaged):
        check_file(path, ONE)
    if kind != "directory":
        save(path, receipt)
        assert load(path, InitReceipt) == receipt
        assert path.is_file()
        assert not path.is_symlink()


def test_inputs_are_kept_as_they_are(tmp_path: Path) -> None:
    """Derivation keys are made of them."""
    path = tmp_path / "receipt.json"
    inputs = {"a": [1, None, True, "é", {"b": 1.5}]}
    save(path, BuiltReceipt(KEY, inputs, (), ONE, 0, 1, 0, 0))
    assert load(path, BuiltReceipt).inputs == json.loads(json.dumps(inputs))

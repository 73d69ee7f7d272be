"""One grammar of sizes, wherever one is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from imagetool.config import images, schema
from rootdisk.cli.sizes import PATTERN, parse_size, size_text
from rootdisk.errors import BadInput
from runner.options.values import size_bytes

MIB, GIB = 1 << 20, 1 << 30
SIZES = {
    "512m": 512 * MIB,
    "1.5g": 1536 * MIB,
    "8GiB": 8 * GIB,
    "8GB": 8 * GIB,
    "2 GiB": 2 * GIB,
    "1T": 1 << 40,
    "0.5k": 512,
    "1.3g": 1_395_864_371,
    "5": 5,
    "5b": 5,
    "007": 7,
}
NOT_SIZES = [
    "",
    "m",
    "1e3",
    "0x10",
    "1_0",
    "-1",
    "+1",
    " 5",
    "5 ",
    "5  g",
    "1.",
    ".5",
    "1.5.5g",
    "1ib",
    "5x",
    "5gx",
    "１",
]
NOT_SIZES += ["9" * 16, "1\n", "nan", "inf"]


@pytest.mark.parametrize("text", SIZES)
def test_sizes(text: str) -> None:
    assert parse_size(text) == size_bytes(text, "--x", bare_least=0) == SIZES[text]


@pytest.mark.parametrize("text", NOT_SIZES)
def test_what_is_not_a_size(text: str) -> None:
    """The error says what to type."""
    with pytest.raises(BadInput, match=r"as 512m, 1\.5g or 8GiB"):
        parse_size(text)
    with pytest.raises(BadInput, match=r"^--x: .* is not a size: write .*8GiB$"):
        size_bytes(text, "--x")


def test_past_what_a_file_can_have() -> None:
    with pytest.raises(BadInput, match="9223372036854775807 bytes"):
        parse_size("99999999p")


@pytest.mark.parametrize("size", [MIB, 3 * MIB, GIB, 1536 * MIB, 16 << 40, 1 << 50])
def test_what_is_shown_can_be_typed(size: int) -> None:
    assert parse_size(size_text(size)) == size


def test_the_schema_has_the_same_grammar() -> None:
    keys = json.loads(schema.PATH.read_bytes())["definitions"]["image"]["properties"]
    assert {key for key, value in keys.items() if value.get("pattern") == f"^{PATTERN}$"} == {
        "size",
        "memory",
        "max_blob",
    }


@pytest.mark.parametrize("value", ['"1.5g"', '"1536m"', '"1536 MiB"', '"1610612736"'])
@pytest.mark.parametrize("key", ["size", "memory", "max_blob"])
def test_images_toml_takes_them(key: str, value: str) -> None:
    (image,) = images.parse(f'[image.a]\nsource = "x.y/a:1"\n{key} = {value}\n', Path("/p/images.toml"))
    assert getattr(image, key) == 1536 * MIB


@pytest.mark.parametrize("number", [1, 8, 16, 31, 32, 512, 4096, 20_000_000])
@pytest.mark.parametrize("key", ["size", "memory", "max_blob"])
def test_what_an_error_advises_is_taken(key: str, number: int) -> None:
    """A number without a unit: each quoted size of the hint may be written in its place."""
    with pytest.raises(BadInput) as caught:
        images.parse(f'[image.a]\nsource = "x.y/a:1"\n{key} = {number}\n', Path("/p/images.toml"))
    for advised in caught.value.hint.split('"')[1::2]:
        images.parse(f'[image.a]\nsource = "x.y/a:1"\n{key} = "{advised}"\n', Path("/p/images.toml"))

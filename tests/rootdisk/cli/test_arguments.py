"""What an option's number means, and what to write in place of one that means nothing."""

from __future__ import annotations

import pytest

from rootdisk.errors import BadInput
from runner.cli import parser
from runner.options.values import size_bytes


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("run", "--timeout", "5s", "a"), "--timeout: '5s' is not a number of seconds: write 5"),
        (("run", "--timeout", "2m", "a"), "--timeout: '2m' is not a number of seconds: write 120"),
        (("run", "--timeout", "", "a"), "--timeout: '' is not a number of seconds: write 10"),
        (("run", "--cpus", "1.5", "a"), "--cpus: '1.5' is not a whole number: write 2"),
        (("run", "--cpus", "0.5", "a"), "--cpus: '0.5' is not a whole number: write 1"),
        (("stop", "-t", "1h", "a"), "--time: '1h' is not a number of whole seconds: write 3600"),
        (("restart", "-t", "0.5", "a"), "--time: '0.5' is not a number of whole seconds: write 10"),
        (("prune", "--older-than", "7d"), "--older-than: '7d' is not a number of days: write 7"),
        (("prune", "--older-than", "12h"), "--older-than: '12h' is not a number of days: write 0.5"),
        (("prune", "--older-than", "x"), "--older-than: 'x' is not a number of days: write 10"),
    ],
)
def test_a_time_with_a_unit(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(BadInput) as caught:
        parser().parse_args(words)
    assert str(caught.value) == said


def test_a_size_without_a_unit_is_bytes_unless_nobody_means_that() -> None:
    """--disk-size 20 was a disk of 20 bytes, and prune --max-size 10 emptied the store."""
    assert size_bytes("536870912", "--memory") == 512 << 20
    assert size_bytes("20b", "--max-size") == 20
    assert size_bytes("0", "--max-size", 0) == 0
    assert size_bytes("65536", "--tmpfs", bare_least=4096) == 65536
    with pytest.raises(BadInput, match=r"^--disk-size '20' is 20 bytes: write a unit, as 20m or 20g$"):
        size_bytes("20", "--disk-size")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("logs", "a", "b"), "unrecognized arguments: b: runner logs takes NAME alone"),
        (("images", "a"), "unrecognized arguments: a: runner images takes options only"),
        (("rename", "a", "b", "c"), "unrecognized arguments: c: runner rename takes NAME NEW alone"),
    ],
)
def test_a_word_too_many(words: tuple[str, ...], said: str) -> None:
    with pytest.raises(BadInput) as caught:
        parser().parse_args(words)
    assert str(caught.value) == said


def test_a_flag_with_a_value() -> None:
    """The value is not repeated: it may be a password."""
    with pytest.raises(BadInput) as caught:
        parser().parse_args(["login", "--password-stdin=hunter2", "a"])
    assert str(caught.value) == "--password-stdin takes no value: write --password-stdin alone, or leave it out"
    with pytest.raises(BadInput) as caught:
        parser().parse_args(["login", "--pass-word=hunter2", "a"])
    assert "hunter2" not in str(caught.value)

"""Values of other types than a parameter has: one error before anything is done, whatever they are."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import runner
from rootdisk.errors import BadInput
from runner import Sandbox
from runner.api import collected
from runner.api.known import stop_seconds
from runner.api.life import Life
from runner.api.options import BootOptions, boot_options, exec_options
from runner.api.texts import bytes_of, count_of, seconds_of
from runner.store.store import Store


class Odd:
    """Its text would take a second line, and control a terminal."""

    def __repr__(self) -> str:
        return "a\nb\x1b[31m"


class Broken:
    """It has no text."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


ODD: list[Any] = [
    *(True, 0, -1, 1.5, float("nan"), 10**400, 10**5000, "x", "", b"x", "a\0b", "a\nb", [1], [None], ["a\0b"]),
    *({"a": None}, {"a": Odd()}, {"a": b"\0"}, {"a=b": "c"}, {"": "c"}, {5: "c"}, {None: "c"}, {"x"}, (1,), object),
    *(Odd(), Broken(), [Odd()], [[]], range(3), bytearray(b"x")),
]


@pytest.mark.parametrize("option", BootOptions.__annotations__)
def test_any_value_of_any_option(option: str) -> None:
    said = []
    for value in ODD:
        try:
            boot_options("oci:x", ["true"], {option: value})
        except BadInput as err:
            said.append(str(err))
    assert said
    assert all(text.isprintable() and len(text) < 300 for text in said)


@pytest.mark.parametrize("value", [*ODD[:6], *ODD[14:]])
def test_any_command(value: Any) -> None:
    with pytest.raises(BadInput, match="command ") as caught:
        boot_options("oci:x", value, {})
    assert str(caught.value).isprintable()


@pytest.mark.parametrize("artifact", ["--help", "-h", "--", "-", "--from=x", "--policy=/dev/null", "--version", "-q"])
def test_an_artifact_is_never_an_option(artifact: str, capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert boot_options(artifact, (), {}).artifact == artifact
    with pytest.raises(BadInput, match="is not a valid repository"):
        Sandbox.boot(artifact, store=tmp_path / "store")
    assert capfd.readouterr() == ("", "")


def test_names_with_values() -> None:
    assert exec_options(["x"], {"A": "1", "B": 2, "C": b"\xff", "D": Path("/d"), "E": ""}, "", "").env == [  # type: ignore[dict-item]
        *("A=1", "B=2", "C=\udcff", "D=/d", "E=")
    ]
    for env in ({"A": None}, {"A=B": "c"}, {"": "c"}, {1: "c"}):
        with pytest.raises(BadInput, match=r"^env"):
            exec_options(["x"], env, "", "")  # type: ignore[arg-type]


def test_a_user_of_two_variables_that_are_not_set() -> None:
    """Without a name it is root, whatever the image says."""
    for user in (":", "::"):
        with pytest.raises(BadInput, match=r"^-u ':+': write USER"):
            collected.request_of(["id"], (), "", user, stdin=False)


def test_an_error_does_not_show_what_may_be_secret() -> None:
    for env in ("TOKEN=hunter2", b"TOKEN=hunter2", {"TOKEN=hunter2"}):
        with pytest.raises(BadInput) as caught:
            exec_options(["x"], env, "", "")  # type: ignore[arg-type]
        assert "hunter2" not in str(caught.value)


def test_an_option_that_is_none_is_not_there() -> None:
    assert boot_options("oci:x", (), dict.fromkeys(BootOptions.__annotations__)) == boot_options("oci:x", (), {})


@pytest.mark.parametrize("value", [None, 5, "", b"", [], Odd(), Broken()])
def test_a_store_is_never_the_working_directory(value: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ROOTDISK_STORE", str(tmp_path / "store"))
    if value is None:
        assert runner.images(store=value) == []
    else:
        with pytest.raises(BadInput, match=r"^store"):
            runner.images(store=value)
    assert {path.name for path in tmp_path.iterdir()} <= {"store"}


CALLS: list[Callable[[Any, Path], object]] = [
    lambda value, store: Sandbox.get(value, store=store),
    lambda value, store: runner.remove_snapshot(value, store=store),
    lambda value, store: runner.rmi(value, store=store),
    lambda value, store: runner.rmi("x", platform=value, store=store),
    lambda value, store: runner.prune(max_size=value, store=store),
    lambda value, store: runner.prune(older_than_days=value, store=store),
    lambda value, store: list(runner.events(since=value, until=value, store=store)),
]


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("value", [[], {}, Odd(), Broken(), float("nan"), "x"])
def test_functions_on_a_store(call: Callable[[Any, Path], object], value: Any, tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        call(value, tmp_path)
    assert str(caught.value).isprintable()


def test_a_number_of_bytes_is_one(tmp_path: Path) -> None:
    """A text without a unit is a mistake on a command line; in Python, a number is meant."""
    assert runner.prune(max_size=10, store=tmp_path / "store") == []
    with pytest.raises(BadInput, match=r"^max_size '10' is 10 bytes: write a unit"):
        runner.prune(max_size="10", store=tmp_path / "store")


TIMES: list[Any] = ["5", b"5", True, [], float("nan"), Odd(), 10**400]
COUNTS: list[Any] = ["5", True, [], 1.0, -1, None]
NO_BYTES: list[Any] = ["x", 5, [1], None, Odd()]


def test_numbers() -> None:
    for value in TIMES:
        with pytest.raises(BadInput, match=r"^timeout="):
            seconds_of(value, "timeout")
        with pytest.raises(BadInput, match=r"^timeout="):
            stop_seconds(value)
    for value in COUNTS:
        with pytest.raises(BadInput, match=r"^max_output="):
            count_of(value, "max_output")
    assert (seconds_of(None, ""), seconds_of(5, ""), seconds_of(-1, "")) == (None, 5.0, -1.0)
    assert [stop_seconds(value) for value in (0, 0.1, 1, 2.5)] == [
        0,
        1,
        1,
        3,
    ]  # not killed at once for want of a second


def test_bytes() -> None:
    for value in NO_BYTES:
        with pytest.raises(BadInput, match=r"^data is \w+, not bytes"):
            bytes_of(value, "data")
    held: Any = memoryview(bytearray(b"x"))
    assert bytes_of(held, "data") == b"x"
    with pytest.raises(BadInput, match=r"^input is str"):
        collected.checked(NO_BYTES[0], None, 1)


def test_waiting_after_close(tmp_path: Path) -> None:
    store = Store.open(tmp_path)
    with pytest.raises(BadInput, match="sandbox box is closed: wait for its end before close"):
        Sandbox("box", store, None, Life(is_tied=True)).wait()
    with pytest.raises(BadInput, match="sandbox box is closed"):
        asyncio.run(runner.AsyncSandbox(Sandbox("box", store, None, Life(is_tied=True))).wait())
    known = Life(is_tied=True)
    known.status = 3
    assert Sandbox("box", store, None, known).wait() == 3
    assert asyncio.run(runner.AsyncSandbox(Sandbox("box", store, None, known)).wait()) == 3


def test_what_is_public_has_these_parameters() -> None:
    """`exec` of both kinds takes the same."""
    assert inspect.signature(Sandbox.exec) == inspect.signature(runner.AsyncSandbox.exec)

"""User and group numbers and signals: one parser, bounded; nothing wraps to root."""

from __future__ import annotations

import pytest

from imagetool.config.images import of_command_line
from imagetool.layout.accounts import Accounts
from imagetool.layout.additions import Owner, process_record
from rootdisk.artifact.format import Process
from rootdisk.errors import BadInput
from rootdisk.oci.fields import Fields
from rootdisk.parsing.ids import check_user, id_or_none, parse_id, parse_signal
from runner.disk import slot
from tests.support.tars import file, index, pax

OUT_OF_RANGE = [
    "4294967295", "4294967296", "4294967297", "18446744073709551616", "9" * 5000, "-1", "+5", "-0", "-4294967296",
    "0" * 5000 + "4294967295",
]  # fmt: skip
NOT_NUMBERS = ["", " 5", "5 ", "0x10", "1_0", "1e3", "٣", "²", "5\n", "1.0"]


def test_numbers_in_range() -> None:
    assert [parse_id(text) for text in ("0", "7", "4294967294", "007", "0" * 5000 + "9")] == [0, 7, 4294967294, 7, 9]


@pytest.mark.parametrize("text", [*OUT_OF_RANGE, *NOT_NUMBERS])
def test_numbers_that_are_none(text: str) -> None:
    assert id_or_none(text) is None
    with pytest.raises(BadInput, match="is not a user or group number: 0 to 4294967294") as failed:
        parse_id(text)
    assert len(str(failed.value).splitlines()) == 1
    assert len(str(failed.value)) < 200


@pytest.mark.parametrize("form", ["{}", "{}:{}", "app:{}", "1000:{}", "{}:1000", "{}:app"])
@pytest.mark.parametrize("text", OUT_OF_RANGE)
def test_users_out_of_range_wherever_they_come_from(text: str, form: str) -> None:
    user = form.replace("{}", text)
    with pytest.raises(BadInput, match=r"^-u .*is not a user or group number"):
        check_user(user, "-u")
    with pytest.raises(BadInput, match=r"^USER "):  # what an image says
        process_record(Process(user=user))
    with pytest.raises(BadInput, match="user"):  # of images.toml
        of_command_line("x", {"source": "x", "process": {"user": user}})
    with pytest.raises(BadInput, match=r"^user "):  # of the slot
        slot.pack([("user", user.encode())], 65536)
    if len(user) <= 256:
        with pytest.raises(BadInput, match="config: user"):  # of an artifact
            Process.of(Fields({"user": user}, "artifact config"))


@pytest.mark.parametrize("user", ["", "root", "app:www", "4294967294:0", "user:", "Ü", "app.1", "1app", "-"])
def test_users_that_are_looked_up_in_the_guest(user: str) -> None:
    assert check_user(user, "-u") == user
    slot.pack([("user", user.encode())], 65536)


@pytest.mark.parametrize("text", [text for text in OUT_OF_RANGE if len(text) < 100])
def test_lines_of_account_files(text: str) -> None:
    """A line whose number is none makes no user: an owner by that name is one error."""
    found = Accounts(
        {
            "passwd": f"app:x:{text}:5::/:/bin/sh\nweb:x:5:{text}::/:\nok:x:7:8::/:".encode(),
            "group": f"g:x:{text}:".encode(),
        }
    )
    assert found.user("ok") == (7, 8)
    assert found.user("nobody") is None
    for name in ("app", "web"):
        with pytest.raises(
            BadInput, match=f"user {name} has no valid number in the image's /etc/passwd: 0 to 4294967294"
        ):
            found.user(name)
    with pytest.raises(BadInput, match="group g has no valid number"):
        found.group_id("g")


@pytest.mark.parametrize("text", OUT_OF_RANGE)
def test_owners(text: str) -> None:
    with pytest.raises(BadInput):
        of_command_line("x", {"source": "x", "owners": {"/a": {"uid": text}}})
    assert Owner.parse("/a", text).user == text  # refused when it is put on the disk: tests/imagetool/layout


@pytest.mark.parametrize("number", [4294967295, 4294967296, 1 << 32 | 7, (1 << 62) - 1, -1])
def test_owners_in_tar_headers(number: int) -> None:
    for entry in (file(b"f", uid=number), file(b"f", gid=number), pax([(b"uid", b"%d" % number)]) + file(b"f")):
        with pytest.raises(BadInput, match="layer test: entry 'f'"):
            index(entry + bytes(1024))


def test_signals() -> None:
    names = {
        "TERM": 15,
        "SIGTERM": 15,
        "sigint": 2,
        "9": 9,
        "64": 64,
        "SIGRTMIN": 34,
        "RTMIN+3": 37,
        "SIGRTMAX-2": 62,
        "IO": 29,
    }
    assert {name: parse_signal(name) for name in names} == names


@pytest.mark.parametrize(
    "text",
    [
        "",
        "SIG",
        "0",
        "65",
        "-9",
        "4294967305",
        "9" * 5000,
        "FOO",
        "SIGRTMIN+31",
        "RTMAX-31",
        "RTMIN+",
        "RTMIN+-1",
        "RTMIN-1",
        "٣",
    ],
)
def test_signals_that_are_none(text: str) -> None:
    with pytest.raises(BadInput, match="is not a signal"):
        parse_signal(text)

"""Numbers and names of the command line: what is taken is what is meant."""

from __future__ import annotations

import pytest

from rootdisk.errors import BadInput
from runner.cli import parser
from runner.commands.boot import boot_command
from runner.options import values as options


@pytest.mark.parametrize("text", ["1_0", "１２", "²", " 5", "5 ", "1e3", "0x10", "nan", "inf", "", "9" * 30, "+5"])
@pytest.mark.parametrize("option", ["--cpus", "--timeout", "--memory", "--disk-size"])
def test_what_is_no_number(option: str, text: str) -> None:
    with pytest.raises(BadInput) as caught:
        boot_command(parser("boot").parse_args(["boot", f"{option}={text}", "oci:none:1"]))
    assert option in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        "0:80",
        "80:0",
        "65536:1",
        "1:99999",
        "80",
        "-1:80",
        "80:80/sctp",
        "256.1.1.1:1:1",
        "1.2.3:1:1",
        "٣:80",
        "::1:80:80",
        "010.0.0.1:80:80",  # inet_aton(3) reads 8.0.0.1
        "127.000.0.2:80:80",
    ],
)
def test_what_is_no_port(text: str) -> None:
    with pytest.raises(BadInput, match="--publish"):
        options.forwards([text])


def test_ports() -> None:
    assert options.forwards(["8080:80", "8080:80/udp", "0.0.0.0:08081:80", "127.0.0.2:8080:1", "53:53/UDP"]) == (
        ("tcp", "127.0.0.1", 8080, 80),
        ("udp", "127.0.0.1", 8080, 80),
        ("tcp", "0.0.0.0", 8081, 80),
        ("tcp", "127.0.0.2", 8080, 1),
        ("udp", "127.0.0.1", 53, 53),
    )
    with pytest.raises(BadInput, match=r"port 8080 of 127\.0\.0\.1 is published twice"):
        options.forwards(["8080:80", "127.0.0.1:8080:81"])


@pytest.mark.parametrize("text", ["", "-a", ".a", "a b", "a/b", "a\n", "a\x1b", "ä", "a" * 65, "a:b", "a\udcff"])
def test_what_is_no_host_name(text: str) -> None:
    with pytest.raises(BadInput, match="--hostname"):
        options.hostname(text)


def test_host_names() -> None:
    for text in ("a", "A-b_c.example", "1", "a" * 64):
        assert options.hostname(text) == text


def test_labels() -> None:
    assert options.labels(["b", "a=1=2", "a=3"]) == (("a", "3"), ("b", ""))
    with pytest.raises(BadInput, match="NAME=VALUE"):
        options.labels(["=x"])
    with pytest.raises(BadInput, match="65536 characters"):
        options.labels([f"{n}=" + "x" * 10_000 for n in range(7)])

"""The rules of an artifact: a user may narrow them, and allows more only on purpose."""

from __future__ import annotations

import pytest

from rootdisk.artifact.format import ArtifactConfig
from rootdisk.errors import BadInput
from rootdisk.network.rules import parse_rule
from rootdisk.oci.documents import canonical_json
from runner.options import network
from runner.options.boot import request
from runner.parser import parser
from runner.sandbox.state import Spec
from tests.support.artifacts import example_config

RULES = ("*.example.org:443", "a.test:80", "a.test:443", "10.0.0.0/8:5432")


def spec_of(*options: str, rules: tuple[str, ...] = RULES) -> Spec:
    """What a sandbox of an artifact with `rules` gets."""
    chosen = parser("boot").parse_args(["boot", *options, "oci:x:1"])
    return network.of_artifact(request(chosen).spec, rules, chosen)


@pytest.mark.parametrize(
    ("options", "allow"),
    [
        ((), RULES),
        (("--network", "none"), ()),
        (("--allow", "A.test"), ("a.test",)),  # both of its ports, each of another rule
        (("--allow", "x.example.org:443", "--allow", "10.1.0.0/16:5432"), ("x.example.org:443", "10.1.0.0/16:5432")),
        (("--allow", "*.x.example.org:443"), ("*.x.example.org:443",)),
        (("--widen", "--allow", "b.test"), ("b.test",)),
    ],
)
def test_what_an_artifact_allows(options: tuple[str, ...], allow: tuple[str, ...]) -> None:
    spec = spec_of(*options)
    assert (spec.allow, spec.network) == (allow, "none")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--network", "user"), "--network user: the artifact allows only"),
        (("--allow", "b.test"), "--allow b.test: the artifact allows only"),
        (("--allow", "example.org:443"), "--allow example.org:443: the"),
        (("--allow", "x.example.org"), "--allow x.example.org: the"),  # port 80
        (("--allow", "a.test:*"), r"--allow a.test:\*: the"),
        (("--allow", "*"), r"--allow \*: the"),
        (("--allow", "10.0.0.0/7:5432"), "--allow 10.0.0.0/7:5432: the"),
        (("--allow", "a.test", "--allow", "10.0.0.1:22"), "--allow 10.0.0.1:22: the"),
        (("-p", "53:53/udp"), "--publish with /udp and an artifact"),
        (("--dns", "10.0.0.1"), "an artifact with rules for the network and --dns"),
        (("--widen",), "--widen without --allow"),
    ],
)
def test_what_it_does_not(options: tuple[str, ...], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        spec_of(*options)


@pytest.mark.parametrize(
    "rule",
    [
        "host.docker.internal:8000",
        "127.0.0.1:80",
        "127.0.0.0/30:*",
        "0.0.0.0/0:*",
        "[::1]:80",
        "0.0.0.0:80",
        "[::]:80",
        "[::ffff:127.0.0.1]:80",
        "[::/0]:*",
    ],
)
def test_this_host_only_if_its_user_says_so(rule: str) -> None:
    """An artifact comes from somebody else, and services on the loopback of the host expect its users alone."""
    with pytest.raises(BadInput, match="which leads to this host's own loopback"):
        spec_of(rules=("a.test:80", rule))
    assert spec_of("--allow", rule, rules=(rule,)).allow == (parse_rule(rule).text,)
    assert spec_of("--network", "none", rules=(rule,)).allow == ()
    assert spec_of("--allow", "a.test:80", rules=("a.test:80", rule)).allow == ("a.test:80",)


def test_no_rule_with_a_star_is_for_this_host() -> None:
    assert spec_of(rules=("*:*", "*.internal:8000")).allow == ("*:*", "*.internal:8000")
    with pytest.raises(BadInput, match=r"--allow host\.docker\.internal:8000: the artifact allows only"):
        spec_of("--allow", "host.docker.internal:8000", rules=("*:*", "*.internal:8000"))


def test_more_on_purpose() -> None:
    spec = spec_of("--widen", "--network", "user")
    assert (spec.allow, spec.network) == ((), "user")
    assert spec_of(rules=()).network == "user"


def test_rules_that_are_none_are_not_the_absence_of_rules() -> None:
    wrong: object
    with pytest.raises(BadInput, match="rule of the artifact 'http://x'"):
        spec_of(rules=("http://x",))
    config = example_config()._replace(allow=RULES)
    value = config.to_json()
    assert ArtifactConfig.parse(canonical_json(value)).allow == RULES
    for wrong in (None, {}, [], {"allow": []}, {"allow": "a.test"}, {"allow": [1]}, {"allow": ["a.test"] * 1001}):
        with pytest.raises(BadInput, match="network"):
            ArtifactConfig.parse(canonical_json({**value, "network": wrong}))

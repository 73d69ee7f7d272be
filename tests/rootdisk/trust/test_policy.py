"""policy.json: the most specific scope counts, and what is not understood is an error that names it."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, rsa

from rootdisk.artifact import policies
from rootdisk.errors import BadInput, Unsupported
from rootdisk.oci.documents import Digest
from rootdisk.oci.fields import Fields
from rootdisk.oci.reference import parse_reference
from rootdisk.trust.identity import Identity
from rootdisk.trust.judgement import Refused, Rule
from rootdisk.trust.keys import PublicKey
from rootdisk.trust.policy import Policy

ANYTHING, REJECT = {"type": "insecureAcceptAnything"}, {"type": "reject"}
KEY = {"type": "sigstoreSigned", "keyPath": "/key.pub"}
DIGEST = Digest.of(b"x")


def parse(value: Any) -> Policy:
    return Policy.parse(json.dumps(value).encode(), "policy.json")


def docker(*requirements: Any, scope: str = "registry.example") -> Any:
    return {"default": [REJECT], "transports": {"docker": {scope: list(requirements)}}}


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ({}, "default"),
        ({"default": []}, "default"),
        ({"default": {}}, "default"),
        ({"default": [ANYTHING], "defaults": []}, "defaults"),
        ({"default": [ANYTHING], "transports": {"dokcer": {}}}, "dokcer"),
        ({"default": [ANYTHING], "transports": {"docker": []}}, "docker"),
        ({"default": [{}]}, "type"),
        ({"default": [{"type": "signed"}]}, "signed"),
        ({"default": [{"type": "reject", "why": 1}]}, "why"),
        (docker({"type": "sigstoreSigned"}), "none"),
        (docker(KEY | {"keyData": "eA=="}), "keyPath and keyData"),
        (docker(KEY | {"keyPath": ""}), "keyPath"),
        (docker({"type": "sigstoreSigned", "keyPaths": []}), "keyPaths"),
        (docker({"type": "sigstoreSigned", "keyData": "?"}), "keyData"),
        (docker(KEY | {"keypath": "/x"}), "keypath"),
        (docker(KEY | {"rekorPublicKeyPath": "/x"}), "rekorPublicKeyPath"),
        (docker({"type": "sigstoreSigned", "fulcio": {}}), "fulcio"),
        (docker({"type": "sigstoreSigned", "pki": {}}), "pki"),
        (docker({"type": "signedBy", "keyPth": "x"}), "keyPth"),
        (docker({"type": "signedBy", "keyPath": "/x"}), "keyType"),
        (docker({"type": "signedBy", "keyType": "PGP", "keyPath": "/x"}), "keyType"),
        (docker({"type": "signedBy", "keyType": "GPGKeys"}), "none"),
        (docker(KEY | {"signedIdentity": {"type": "exactReference", "dockerReference": "a.b/c"}}), "no tag"),
        (
            docker(KEY | {"signedIdentity": {"type": "remapIdentity", "prefix": "a.b/c:1", "signedPrefix": "d.e"}}),
            "a.b/c:1",
        ),
        (docker(KEY | {"signedIdentity": {}}), "type"),
        (docker(KEY | {"signedIdentity": {"type": "matchAnything"}}), "matchAnything"),
        (docker(KEY | {"signedIdentity": {"type": "matchExact", "prefix": "x"}}), "prefix"),
        (docker(KEY | {"signedIdentity": {"type": "exactReference"}}), "dockerReference"),
        (docker(KEY | {"signedIdentity": {"type": "exactRepository", "dockerRepository": "a.b/c:1"}}), "a.b/c:1"),
        (docker(KEY | {"signedIdentity": {"type": "remapIdentity", "prefix": "a"}}), "signedPrefix"),
        (docker(KEY, scope="registry.example/"), "registry.example/"),
        (docker(KEY, scope="*"), "*"),
        (docker(KEY, scope="a.*.example"), "a.*.example"),
        (docker(KEY, scope="*.example/a"), "*.example/a"),
        (docker(KEY, scope="a.b /c"), "a.b /c"),
        (docker(KEY, scope="*.example:5000"), "*.example:5000"),
        (docker(KEY, scope="debian"), "names no registry"),
        (docker(KEY, scope="library/debian"), "names no registry"),
        (docker(KEY, scope="index.docker.io/library/debian"), "write docker.io"),
        (docker(KEY, scope="Registry.Example/a"), "write registry.example"),
        (docker(KEY, scope="*.Example"), "write *.example"),
        ({"default": [REJECT], "transports": {"oci": {"relative": [KEY]}}}, "relative"),
        ({"default": [REJECT], "transports": {"oci": {"/": [KEY]}}}, "oci: /"),
        ({"default": [REJECT], "transports": {"oci": {"/a/../b": [KEY]}}}, "/a/../b"),
    ],
)
def test_what_is_not_understood(value: Any, named: str) -> None:
    with pytest.raises(BadInput) as caught:
        parse(value)
    assert named in str(caught.value)
    assert "\n" not in str(caught.value)


FULL = {
    "default": [REJECT, ANYTHING],
    "transports": {
        "docker": {
            "": [REJECT],
            "registry.example": [
                KEY | {"signedIdentity": {"type": "remapIdentity", "prefix": "a", "signedPrefix": "b"}},
                {"type": "sigstoreSigned", "keyData": "eA==", "signedIdentity": {"type": "matchExact"}},
                {"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/x"},
            ],
        },
        "oci": {"/srv": [{"type": "sigstoreSigned", "keyPaths": ["/a", "/b"]}]},
    },
}


def objects(value: Any) -> list[dict[str, Any]]:
    """Return each object in a value, wherever it is."""
    inside = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    return ([value] if isinstance(value, dict) else []) + [found for item in inside for found in objects(item)]


def test_what_is_unknown_at_any_depth() -> None:
    """A field more, in another case, or of another type, is an error that names it, in each object of a policy."""
    parse(FULL)
    for at, place in enumerate(objects(FULL)):
        for name in (*place, "unknown"):
            for changed in (None, 5, "", [None], {"x": 1}, "another case"):
                value = json.loads(json.dumps(FULL))
                here = objects(value)[at]
                if changed != "another case":
                    here[name] = changed
                elif name in ("", "/srv", "registry.example", "unknown"):
                    continue  # a scope may have any name
                else:
                    here[name.swapcase()] = here.pop(name)
                with pytest.raises(BadInput) as caught:
                    parse(value)
                assert "\n" not in str(caught.value)


def test_where_a_policy_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first that exists counts, and the others are not opened."""
    system = (tmp_path / "etc/rootdisk/policy.json", tmp_path / "etc/containers/policy.json")
    assert [str(path) for path in policies.SYSTEM] == ["/etc/rootdisk/policy.json", "/etc/containers/policy.json"]
    monkeypatch.setattr(policies, "SYSTEM", system)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("XDG_CONFIG_HOME", raising=False)
    at_home, named = tmp_path / "home/.config/rootdisk/policy.json", tmp_path / "named.json"
    assert policies.load() is None
    for path in (*reversed(system), at_home):
        path.parent.mkdir(parents=True)
        path.write_text(json.dumps({"default": [REJECT]}))
        found = policies.load()
        assert found is not None
        assert found.where == str(path)
        path.write_text("?")  # the next is before it, so nobody reads it
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "elsewhere"))
    with pytest.raises(BadInput, match="etc/rootdisk"):
        policies.load()
    named.write_text(json.dumps({"default": [ANYTHING]}))
    assert policies.rule_for(parse_reference(f"{A}:1"), named) is None
    with pytest.raises(BadInput, match=r"none\.json: No such file"):
        policies.load(tmp_path / "none.json")


PLAIN = json.dumps({"default": [ANYTHING]})


def identity(kind: str, **fields: str) -> str:
    return json.dumps({"default": [KEY | {"signedIdentity": {"type": kind, **fields}}]})


@pytest.mark.skipif(not shutil.which("skopeo"), reason="needs skopeo")
@pytest.mark.parametrize(
    "text",
    [
        PLAIN,
        f"{PLAIN} \n\n",
        f"\ufeff{PLAIN}",
        f"{PLAIN} x",
        PLAIN + PLAIN,
        f"{PLAIN}\0",
        "{}",
        "[]",
        "",
        '{"default": null}',
        '{"default": [null]}',
        '{"default": [{"type": 1}]}',
        '{"default": [{"type": "reject"}], "default": [{"type": "insecureAcceptAnything"}]}',
        '{"default": [{"type": "reject", "type": "insecureAcceptAnything"}]}',
        '{"Default": [{"type": "insecureAcceptAnything"}]}',
        '{"default": [{"Type": "insecureAcceptAnything"}]}',
        '{"default": [{"type": "reject"}], "transports": {"oci": {"": []}}}',
        '{"default": [{"type": "reject"}], "transports": {"oci": {"": NaN}}}',
        json.dumps({"default": [KEY]}),
        json.dumps({"default": [{"type": "sigstoreSigned", "keyData": "QUJD\nREVG"}]}),
        json.dumps({"default": [{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/x"}]}),
        json.dumps({"default": [{"type": "signedBy", "keyType": "PGP", "keyPath": "/x"}]}),
        json.dumps({"default": [{"type": "signedBy", "keyType": "GPGKeys", "keyPath": 5}]}),
        json.dumps({"default": [{"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/x", "signedIdentity": {}}]}),
        json.dumps({"default": [{"type": "signedBy", "keyType": "GPGKeys", "keyData": "?"}]}),
        json.dumps(docker(KEY, scope="*.example.com")),
        json.dumps(docker(KEY, scope="a.example:5000/b:1")),
        json.dumps({"default": [REJECT], "transports": {"oci": {"a": [KEY]}}}),
        json.dumps({"default": [REJECT], "transports": {"oci": {"/": [KEY]}}}),
        json.dumps({"default": [REJECT], "transports": {"oci": {"/a/../b": [KEY]}}}),
        identity("matchExact"),
        identity("matchRepository"),
        identity("matchRepoDigestOrExact", x="1"),
        identity("matchAnything"),
        identity("exactReference", dockerReference="a.b/c:1"),
        identity("exactReference", dockerReference="a.b/c"),
        identity("exactRepository", dockerRepository="a.b/c"),
        identity("exactRepository", dockerRepository="a.b/C"),
        identity("remapIdentity", prefix="a.b:5000", signedPrefix="localhost:5000/x"),
        identity("remapIdentity", prefix="a.b/c:1", signedPrefix="d.e"),
        identity("remapIdentity", prefix="a.b/", signedPrefix="d.e"),
        identity("remapIdentity", prefix="a.b"),
    ],
)
def test_skopeo_takes_and_refuses_the_same(text: str, tmp_path: Path) -> None:
    file = tmp_path / "policy.json"
    file.write_text(text)
    copy = ["skopeo", "--policy", str(file), "copy", f"dir:{tmp_path}/none", f"dir:{tmp_path}/out"]
    done = subprocess.run(copy, capture_output=True, text=True)
    assert done.returncode
    is_refused = "Error loading trust policy" in done.stderr
    try:
        Policy.parse(text.encode(), "policy.json")
    except BadInput:
        assert is_refused
    else:
        assert not is_refused, done.stderr


def test_text_that_has_two_meanings() -> None:
    for text in ('{"default": [{"type": "reject"}], "default": [{"type": "insecureAcceptAnything"}]}', "[]", "", "{"):
        with pytest.raises(BadInput):
            Policy.parse(text.encode(), "policy.json")


@pytest.mark.parametrize(
    ("reference", "scope"),
    [
        ("registry.example:5000/a/b:1", "registry.example:5000/a/b:1"),
        ("registry.example:5000/a/b:2", "registry.example:5000/a/b"),
        (f"registry.example:5000/a/b@{DIGEST}", "registry.example:5000/a/b"),
        ("registry.example:5000/a/bc:1", "registry.example:5000/a"),
        ("registry.example:5000/ab:1", "registry.example:5000"),
        ("registry.example/a/b:1", "*.example"),
        ("other.registry.example/a:1", "*.registry.example"),
        ("registry.example:5001/a:1", "*.example"),
        ("other.registry.example:5000/a:1", "*.registry.example"),
        ("Registry.EXAMPLE:5000/a/b:2", "registry.example:5000/a/b"),
        ("DOCKER.io/ubuntu", "docker.io/library"),
        ("registry.other/a:1", ""),
        ("debian", "docker.io/library/debian"),
        ("ubuntu", "docker.io/library"),
        ("oci:/srv/disks/web:1", "/srv/disks/web:1"),
        ("oci:/srv/disks/web:2", "/srv/disks"),
        ("oci:/srv/diskses/web:2", "/srv"),
        ("oci:/tmp/web:2", "default"),
    ],
)
def test_the_most_specific_scope(reference: str, scope: str) -> None:
    scopes = (
        "registry.example:5000/a/b:1", "registry.example:5000/a/b", "registry.example:5000/a", "registry.example:5000",
        "*.example", "*.registry.example", "", "docker.io/library/debian", "docker.io/library",
    )  # fmt: skip

    def marked(name: str) -> list[Any]:
        return [{"type": "sigstoreSigned", "keyData": base64.b64encode(f"<{name}>".encode()).decode()}]

    folders = ("/srv/disks/web:1", "/srv/disks", "/srv")
    policy = parse(
        {
            "default": marked("default"),
            "transports": {
                "docker": {name: marked(name) for name in scopes},
                "oci": {name: marked(name) for name in folders},
                "docker-daemon": {"": [ANYTHING]},
            },
        }
    )
    _, (requirement,) = policy.requirements(parse_reference(reference))
    assert requirement.key_data == (f"<{scope}>".encode(),)


A = "registry.example/web"


@pytest.mark.parametrize(
    ("identity", "reference", "signed", "fits"),
    [
        ({}, f"{A}:1", f"{A}:1", True),
        ({}, f"{A}:1", f"{A}:2", False),
        ({}, f"{A}:1", A, False),
        ({}, f"{A}:latest", A, False),
        ({}, f"{A}:1", "", False),
        ({}, f"{A}:1", "registry.example/web2:1", False),
        ({}, f"{A}:1", "?", False),
        ({}, f"{A}:1", f"{A}:1@{DIGEST}", False),
        ({}, f"{A}:1", f"{A}@{DIGEST}", False),
        ({}, f"{A}@{DIGEST}", f"{A}:1@{DIGEST}", True),
        ({}, f"{A}@{DIGEST}", f"{A}:7", True),
        ({}, f"{A}@{DIGEST}", "", True),
        ({}, f"{A}@{DIGEST}", "registry.example/db:7", False),
        ({"type": "matchExact"}, f"{A}:1", f"{A}:1", True),
        ({"type": "matchExact"}, f"{A}@{DIGEST}", f"{A}:1", False),
        ({"type": "matchExact"}, f"{A}@{DIGEST}", f"{A}@{DIGEST}", True),
        ({"type": "matchExact"}, f"{A}@{DIGEST}", "", False),
        ({"type": "matchRepository"}, f"{A}:1", A, True),
        ({"type": "matchRepository"}, f"{A}:1", f"{A}:2", True),
        ({"type": "matchRepository"}, f"{A}:1", "registry.example/web/x", False),
        ({"type": "matchRepository"}, f"{A}:1", "", False),
        ({"type": "exactReference", "dockerReference": "a.b/c:1"}, f"{A}:1", "a.b/c:1", True),
        ({"type": "exactReference", "dockerReference": "a.b/c:1"}, f"{A}:1", f"{A}:1", False),
        ({"type": "exactReference", "dockerReference": "a.b/c:1"}, f"{A}:1", f"a.b/c:1@{DIGEST}", False),
        ({"type": "exactReference", "dockerReference": "a.b/c:1"}, f"{A}@{DIGEST}", "", False),
        ({"type": "exactRepository", "dockerRepository": "a.b/c"}, "oci:/x:1", "a.b/c:9", True),
        ({"type": "exactRepository", "dockerRepository": "a.b/c"}, "oci:/x:1", "", False),
        ({"type": "exactRepository", "dockerRepository": "a.b/c"}, "oci:/x:1", "a.b/cd:9", False),
        (
            {"type": "remapIdentity", "prefix": "registry.example", "signedPrefix": "a.b/c"},
            f"{A}:1",
            "a.b/c/web:1",
            True,
        ),
        ({"type": "remapIdentity", "prefix": "registry.example", "signedPrefix": "a.b/c"}, f"{A}:1", f"{A}:1", False),
        ({"type": "remapIdentity", "prefix": "registry", "signedPrefix": "a.b/c"}, f"{A}:1", f"{A}:1", True),
        ({}, "oci:/x:1", "", True),
        ({}, "oci:/x:1", f"{A}:1", False),
    ],
)
def test_identities(identity: dict[str, str], reference: str, signed: str, fits: bool) -> None:
    rule = Identity.parse(Fields(identity, "signedIdentity")) if identity else Identity()
    assert (rule.refuses(parse_reference(reference), signed) == "") is fits


def test_gpg_signatures_are_never_met() -> None:
    """RHEL's own policy asks for them; what it says of others still counts."""
    policy = parse(docker({"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/x"}))
    rule = Rule.of(policy, parse_reference(f"{A}:1"), Path.read_bytes)
    with pytest.raises(Refused, match="signedBy"):
        rule.judge([], [DIGEST])


def test_all_requirements_have_to_be_met() -> None:
    rule = Rule.of(parse(docker(ANYTHING, REJECT)), parse_reference(f"{A}:1"), Path.read_bytes)
    with pytest.raises(Refused, match="reject"):
        rule.judge([], [DIGEST])


@pytest.mark.parametrize("text", ["", "x", "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"])
def test_keys_that_are_not(text: str) -> None:
    with pytest.raises(BadInput, match=r"/key\.pub"):
        Rule.of(parse(docker(KEY)), parse_reference(f"{A}:1"), lambda _: text.encode())


@pytest.mark.parametrize(
    "key",
    [ec.generate_private_key(ec.SECP384R1()), rsa.generate_private_key(65537, 2048), ed448.Ed448PrivateKey.generate()],
)
def test_keys_of_other_kinds(key: Any) -> None:
    pem = key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    with pytest.raises(Unsupported, match="ECDSA P-256 or Ed25519"):
        PublicKey.parse(pem, "key")


def test_a_key_that_is_not_a_file(tmp_path: Path) -> None:
    """Refused at once: nothing waits for who writes to a FIFO, and no endless device is read."""
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "device").symlink_to("/dev/zero")
    (tmp_path / "large").write_bytes(b"x" * 100_000)
    for name in ("fifo", "loop", "device", "large", "missing", "."):
        policy = tmp_path / "policy.json"
        policy.write_text(json.dumps({"default": [{"type": "sigstoreSigned", "keyPath": name}]}))
        with pytest.raises(BadInput, match="key of the policy"):
            policies.rule_for(parse_reference(f"{A}:1"), policy)
        with pytest.raises(BadInput):
            policies.rule_for(parse_reference(f"{A}:1"), tmp_path / name)


def test_a_policy_that_cannot_be_looked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What cannot be seen may be there: nothing is accepted."""
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setattr(policies, "SYSTEM", ())
    assert policies.find() is None
    (tmp_path / "rootdisk").symlink_to("rootdisk")
    with pytest.raises(BadInput, match=r"policy\.json: Too many levels of symbolic links"):
        policies.rule_for(parse_reference(f"{A}:1"))


def test_a_private_key_in_a_policy() -> None:
    with pytest.raises(BadInput, match="a private key"):
        Rule.of(parse(docker(KEY)), parse_reference(f"{A}:1"), lambda _: b"-----BEGIN PRIVATE KEY-----")

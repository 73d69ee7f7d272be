"""Options of a boot for what its sandbox may reach: --network, --allow, --widen, --secret; and what the artifact says about it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import NamedTuple

from rootdisk.errors import BadInput
from rootdisk.limits import ALLOW_MAX_COUNT
from rootdisk.text import printable
from runner.machine.model import Forward
from runner.options import programs
from runner.sandbox.state import Spec

_SHOWN_MAX = 5  # rules in a message


class Network(NamedTuple):
    """The network that the command line asks for."""

    mode: str  # user or none
    allow: tuple[str, ...] = ()
    secrets: tuple[str, ...] = ()


def network(options: argparse.Namespace, forwards: Sequence[Forward]) -> Network:
    """Return what the options say; BadInput names what does not fit together."""
    allow = _allowed(options)
    secrets = _secrets(options)
    mode = options.network or ("none" if allow or secrets else "user")
    if secrets and options.network:
        raise BadInput(f"--secret and --network {mode}", "use --allow: the keeper carries what gets a secret")
    if allow and options.network:
        raise BadInput(f"--allow and --network {mode}", "use one of them: with --allow there is no network card")
    if options.widen and not (allow or secrets) and options.network != "user":
        raise BadInput("--widen without --allow", "say what the sandbox may reach: --allow HOST or --network user")
    if allow or secrets:
        _check(options, forwards, "--allow" if allow else "--secret")
    if forwards and mode == "none" and not (allow or secrets):
        raise BadInput("--publish and --network none", "without a network no port can be reached")
    return Network(mode, allow, secrets)


def of_artifact(spec: Spec, rules: Sequence[str], options: argparse.Namespace) -> Spec:
    """Return `spec` with the rules of its artifact, as far as the options do not narrow them, and those for its secrets.

    Raises:
        BadInput: The options allow more, without --widen.
    """
    if rules and not options.widen and (spec.network != "none" or spec.allow or spec.secrets):
        spec = _narrowed(spec, rules, options)
    if not spec.secrets:
        return spec
    from runner.network.secrets import parse_secret

    implied = (rule for text in spec.secrets for rule in parse_secret(text).rules)
    return spec._replace(allow=tuple(dict.fromkeys((*spec.allow, *implied))))


def _narrowed(spec: Spec, rules: Sequence[str], options: argparse.Namespace) -> Spec:
    """Return `spec` with rules that the artifact's `rules` cover; BadInput if its options allow more."""
    shown = ", ".join(printable(rule) for rule in rules[:_SHOWN_MAX])
    if len(rules) > _SHOWN_MAX:
        shown += f" and {len(rules) - _SHOWN_MAX} more"
    only = f"the artifact allows only {shown}"
    if options.network:
        raise BadInput(f"--network {options.network}: {only}", "to allow more: --widen")
    from rootdisk.network.rules import parse_rule

    known = [parse_rule(rule, "rule of the artifact") for rule in rules]
    wanted = [(f"--allow {text}", text) for text in spec.allow]
    if spec.secrets:
        from runner.network.secrets import parse_secret

        secrets = map(parse_secret, spec.secrets)
        wanted += [(f"--secret {secret.name} for {text}", text) for secret in secrets for text in secret.rules]
    for shown, text in wanted:
        rule = parse_rule(text)
        ports = [rule._replace(ports=(port,)) for port in rule.ports] or [rule]
        if not all(any(wide.covers(narrow) for wide in known) for narrow in ports):
            raise BadInput(f"{shown}: {only}", "to allow more: --widen with --allow")
    if not spec.allow:
        if own := next((rule for rule in known if rule.is_for_this_host), None):
            raise BadInput(
                f"the artifact allows {printable(own.text)}, which leads to this host's own loopback",
                f"to accept it, list it yourself, with all else that you allow: --allow {printable(own.text)}",
            )
        _check(options, [Forward(*forward) for forward in spec.forwards], "an artifact with rules for the network")
    return spec._replace(network="none", allow=spec.allow or tuple(rule.text for rule in known))


def _check(options: argparse.Namespace, forwards: Sequence[Forward], why: str) -> None:
    """Refuse options that need a network card."""
    if any(forward.protocol == "udp" for forward in forwards):
        raise BadInput(f"--publish with /udp and {why}", "with --allow only TCP ports can be published")
    if options.dns or options.dns_search or options.dns_option:
        raise BadInput(
            f"{why} and --dns", "with --allow this host looks names up: omit --dns, --dns-search, --dns-option"
        )


def _allowed(options: argparse.Namespace) -> tuple[str, ...]:
    """Return the rules of --allow and --allow-file in their usual form; BadInput names the wrong one."""
    if not options.allow and not options.allow_file:
        return ()
    from rootdisk.network.rules import parse_file, parse_rule

    texts = [(text, "--allow") for text in options.allow]
    for path in options.allow_file:
        option = f"--allow-file {printable(path)}"
        texts += [(text, option) for text in parse_file(programs.read_small(path, "--allow-file"), option)]
    rules = tuple(dict.fromkeys(parse_rule(text, option).text for text, option in texts))
    if not rules:
        raise BadInput("--allow-file: no rule is in it", "for no network at all: --network none")
    if len(rules) > ALLOW_MAX_COUNT:
        raise BadInput(
            f"--allow: {len(rules)} rules", f"{ALLOW_MAX_COUNT} at most; *.example.org and networks cover many"
        )
    return rules


def _secrets(options: argparse.Namespace) -> tuple[str, ...]:
    """Return --secret in its usual form, with absolute paths; BadInput names the wrong one."""
    if not options.secret:
        return ()
    from runner.network import authority
    from runner.network.secrets import overlapping, parse_secret

    authority.check_installed()
    secrets = list(map(parse_secret, options.secret))
    if error := overlapping(secrets):
        raise BadInput(error, "write the hosts of a secret with commas: NAME=SOURCE@HOST,HOST")
    texts = []
    for secret in secrets:
        if secret.kind == "file":
            path = os.path.abspath(secret.source)
            secret = secret._replace(source=path)
        elif secret.kind == "env" and secret.source not in os.environ:
            raise BadInput(
                f"--secret {secret.name}: the variable {printable(secret.source, 60)} is not set", "export it first"
            )
        texts.append(secret.text)
    return tuple(texts)

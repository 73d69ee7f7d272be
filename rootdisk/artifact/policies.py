"""Find and read the policy of this host: who must have signed what it uses.

The first of these counts: the file that the command line names, `$XDG_CONFIG_HOME/rootdisk/policy.json`,
`/etc/rootdisk/policy.json`, `/etc/containers/policy.json`. A file that is there and cannot be read is an error. Without any
of them everything is accepted. Modules that understand policies are loaded if there is one.
"""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from rootdisk.errors import BadInput
from rootdisk.oci.reference import Reference
from rootdisk.system.folders import home, named_folder
from rootdisk.text import printable

if TYPE_CHECKING:
    from rootdisk.trust.judgement import Rule
    from rootdisk.trust.policy import Policy

SYSTEM = (Path("/etc/rootdisk/policy.json"), Path("/etc/containers/policy.json"))
_NAME = "rootdisk/policy.json"


def places() -> tuple[Path, ...]:
    """Return where a policy may be, the first that exists counts."""
    config = named_folder("XDG_CONFIG_HOME")
    if config is None and (user := home()) is not None:
        config = user / ".config"
    return (*(() if config is None else (config / _NAME,)), *SYSTEM)


def find(named: Path | None = None) -> Path | None:
    """Return the policy's file: `named`, else the first that exists; None if there is none.

    Raises:
        BadInput: Whether there is one cannot be seen, for example as a directory above it may not be searched.
    """
    if named is not None:
        return named
    for path in places():
        try:
            path.lstat()
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as err:
            raise _unread(path, "policy", err) from err
        return path
    return None


def load(named: Path | None = None) -> Policy | None:
    """Read the policy of this host; None if there is none.

    Raises:
        BadInput: The file cannot be read, or something in it is not understood.
    """
    path = find(named)
    if path is None:
        return None
    from rootdisk.trust.policy import POLICY_MAX_BYTES, Policy

    raw = _read(path, POLICY_MAX_BYTES, "policy")
    return Policy.parse(raw, printable(path), path.absolute().parent)


def rule_for(reference: Reference, named: Path | None = None) -> Rule | None:
    """Return what the policy of this host asks of `reference`; None if it accepts anything, or none is set.

    Raises:
        BadInput: The policy or one of its keys cannot be read.
    """
    policy = load(named)
    if policy is None:
        return None
    if all(requirement.type == "insecureAcceptAnything" for requirement in policy.requirements(reference)[1]):
        return None
    from rootdisk.trust.judgement import Rule
    from rootdisk.trust.keys import KEY_MAX_BYTES

    return Rule.of(policy, reference, lambda path: _read(path, KEY_MAX_BYTES, "key of the policy"))


def _read(path: Path, max_bytes: int, what: str) -> bytes:
    """Read a file of the user or the administrator, who may have made it a link."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            if not stat.S_ISREG(os.fstat(fd).st_mode):
                raise BadInput(f"{what} {printable(path)}: not a regular file")
            data = file.read(max_bytes + 1)
    except OSError as err:
        raise _unread(path, what, err) from err
    if len(data) > max_bytes:
        raise BadInput(f"{what} {printable(path)}: more than {max_bytes} bytes")
    return data


def _unread(path: Path, what: str, err: OSError) -> BadInput:
    return BadInput(f"{what} {printable(path)}: {err.strerror}", "nothing is accepted without it")

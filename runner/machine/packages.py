"""Find the command that installs a program on the distribution of this host."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path

OS_RELEASE = Path("/etc/os-release")
# By os-release's ID or ID_LIKE: how packages are installed there.
_INSTALL = {
    "debian": "apt-get install",
    "fedora": "dnf install",
    "arch": "pacman -S",
    "alpine": "apk add",
    "suse": "zypper install",
}
# From which release on a package of that name is there, or is new enough; before, what has it instead.
_SINCE = {
    ("virtiofsd", "debian"): (13.0, "qemu-system-common"),
    ("virtiofsd", "ubuntu"): (23.1, "qemu-system-common"),
    ("passt", "debian"): (13.0, ""),
    ("passt", "ubuntu"): (24.0, ""),
}


def how_to_install(package: str | Mapping[str, str], os_release: Path | None = None, *, only_new: bool = False) -> str:
    """Return the command that installs `package` here, or why there is none; all that are known for an unknown system.

    If its name differs, `package` has it for each of the systems. With `only_new`, what older releases have instead does not count.
    """
    try:
        text = (os_release or OS_RELEASE).read_text("utf-8", "replace")
    except OSError:
        text = ""
    fields = dict(re.findall(r'^(ID|ID_LIKE|VERSION_ID|PRETTY_NAME)="?([^"\n]*)"?$', text, re.MULTILINE))
    system = f"{fields.get('ID', '')} {fields.get('ID_LIKE', '')}"
    number = re.match(r"[0-9]{1,4}(?:\.[0-9]{1,4})?", fields.get("VERSION_ID", ""))
    if isinstance(package, str):
        since, instead = _SINCE.get((package, fields.get("ID", "")), (0.0, ""))
        if number and float(number[0]) < since:
            if not instead or only_new:
                return f"{fields.get('PRETTY_NAME', system)} has none that is new enough"
            package = instead
        package = dict.fromkeys(_INSTALL, package)
    commands = {name: f"{command} {package[name]}" for name, command in _INSTALL.items()}
    known = [command for name, command in commands.items() if name in system]
    return known[0] if known else "; ".join(f"{name}: {command}" for name, command in commands.items())

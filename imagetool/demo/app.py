"""The program of the demo disk: print what a program in the sandbox sees. It is copied into the image and imports only the standard library."""

from __future__ import annotations

import os
import socket
import sys
from pathlib import Path


def main() -> None:
    """Print the facts."""
    place = Path(__file__).parent
    owner = place.stat()
    tls = [name for name in ("CA", "CERT", "KEY") if Path(os.environ.get(f"ROOTDISK_TLS_{name}", "/none")).is_file()]
    facts = {
        "python": sys.version.split()[0],
        "kernel": f"{os.uname().release} on {socket.gethostname()}",
        "user": f"uid {os.getuid()}, gid {os.getgid()}, in {Path.cwd()}",
        f"owner of {place}": f"{owner.st_uid}:{owner.st_gid}, mode {owner.st_mode & 0o7777:04o}",
        "of the image": os.environ.get("DEMO_IMAGE", "-"),
        "of the build": os.environ.get("DEMO_BUILD", "-"),
        "of this run": os.environ.get("DEMO_RUN", "-"),
        "certificates": ", ".join(tls) or "-",
        "arguments": " ".join(sys.argv[1:]) or "-",
    }
    width = max(map(len, facts))
    print("Hello from a rootdisk sandbox")
    for name, value in facts.items():
        print(f"  {name:<{width}}  {value}")


if __name__ == "__main__":
    main()

"""Containers of pods, as Kubernetes would start them, without it: a root file system of Debian's packages, and bubblewrap.

What a pod's description says of user, capabilities, privileges, root, variables and volumes holds here. Limits of memory, the
seccomp profile and user-defined networks do not: they need a container engine.
"""

from __future__ import annotations

import platform
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from imagetool.demo.debian import own_mounts
from tests.support.copies import build_wheel

# Not that of the Dockerfile in docs/howto/orchestrators.md, but the machine's, from which the demo's kernel is too.
SUITE = platform.freedesktop_os_release().get("VERSION_CODENAME", "")
_SCRIPT = "#!/usr/bin/python3\nfrom runner.__main__ import main\nraise SystemExit(main())\n"


def make_root(folder: Path) -> Path:
    """The root file system that the Dockerfile makes."""
    root, wheels = folder / "root", folder / "wheels"
    packages = "python3,qemu-system-x86"
    command = [*own_mounts(), "mmdebstrap", "--variant=minbase", f"--include={packages}", SUITE, str(root)]
    subprocess.run([*command, *_sources()], check=True, capture_output=True, timeout=900)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "-q"]
    wheel = build_wheel(wheels)
    (python,) = (path.name.removeprefix("python") for path in root.glob("usr/lib/python3.*"))
    target = root / f"usr/local/lib/python{python}/dist-packages"
    options = ["--target", str(target), "--python-version", python, "--only-binary", ":all:"]
    subprocess.run([*pip, "install", *options, str(wheel)], check=True, timeout=300)
    (root / "usr/local/bin/runner").write_text(_SCRIPT)
    (root / "usr/local/bin/runner").chmod(0o755)
    return root


def _sources() -> list[str]:
    """The mirror of this machine."""
    site = ["apt-get", "indextargets", "--format", "$(SITE)", "Origin: Debian", "Label: Debian"]
    return subprocess.run(site, check=True, capture_output=True, text=True).stdout.split()[:1]


def command(pod: Mapping[str, Any], root: Path, volumes: Mapping[str, Path], *more: str) -> list[str]:
    """The command that starts the only container of a pod; `volumes` by their names, `more` for bubblewrap."""
    (container,) = pod["containers"]
    context = {**pod.get("securityContext", {}), **container["securityContext"]}
    assert context["capabilities"] == {"drop": ["ALL"]}
    assert context["allowPrivilegeEscalation"] is False
    user = str(context["runAsUser"])
    options = ["--ro-bind" if context["readOnlyRootFilesystem"] else "--bind", str(root), "/"]
    options += [
        "--proc",
        "/proc",
        "--dev",
        "/dev",
        "--unshare-pid",
        "--unshare-ipc",
        "--unshare-uts",
        "--die-with-parent",
    ]
    options += ["--clearenv", "--setenv", "PATH", "/usr/local/bin:/usr/bin:/bin"]
    for variable in container["env"]:
        options += ["--setenv", variable["name"], variable["value"]]
    for mount in container["volumeMounts"]:
        (root / mount["mountPath"].lstrip("/")).mkdir(exist_ok=True)
        options += ["--ro-bind" if mount.get("readOnly") else "--bind", str(volumes[mount["name"]]), mount["mountPath"]]
    groups = ["--groups", str(context["fsGroup"])] if "fsGroup" in context else ["--clear-groups"]
    drop = [
        "setpriv",
        "--reuid",
        user,
        "--regid",
        "0",
        *groups,
        "--no-new-privs",
        "--bounding-set=-all",
        "--inh-caps=-all",
    ]
    return ["bwrap", *options, *more, *drop, *container["command"]]

"""The compilers of the guest's init, in front of the real ones: what was made of the same sources in this run is not made again.

Every project that a test builds makes the init, which takes three seconds and is always the same; with sanitizers it takes longer.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from imagetool.guest.init import MACHINES

_SCRIPT = r"""#!/bin/sh
# Only a compilation of the whole init, in its directory, is kept; all else is the real compiler's.
real={real} kept={kept}
[ -f init.c ] && [ -w "$kept" ] || exec "$real" "$@"
words= before= out=
for word; do
    [ "$before" = -o ] && out=$word || words="$words $word"
    before=$word
done
key=$({{ printf '%s\n' "$real$words"; cat ./*.c ./*.h; }} | sha256sum | cut -d ' ' -f 1)
[ -f "$kept/$key" ] && exec cp -p "$kept/$key" "$out"
"$real" "$@" || exit
cp -p "$out" "$kept/$key.$$" && mv "$kept/$key.$$" "$kept/$key"
"""


def keep_inits(folder: Path) -> None:
    """Put the compilers first in PATH; the inits are kept in `folder`."""
    programs, kept = folder / "bin", folder / "inits"
    programs.mkdir()
    kept.mkdir()
    for name in ("musl-gcc", "gcc", *(f"{machine}-linux-gnu-gcc" for machine in MACHINES.values())):
        if (real := shutil.which(name)) is not None:
            (programs / name).write_text(_SCRIPT.format(real=real, kept=kept))
            (programs / name).chmod(0o755)
    os.environ["PATH"] = f"{programs}:{os.environ['PATH']}"


def real_path() -> str:
    """PATH without them, for a test of the compilation itself."""
    return os.pathsep.join(
        place for place in os.environ["PATH"].split(os.pathsep) if not (Path(place).parent / "inits").is_dir()
    )

"""What the command `completion` does."""

from __future__ import annotations

import argparse
import sys

from rootdisk.cli.completion import script


def completion_command(options: argparse.Namespace) -> int:
    sys.stdout.write(script(options.whole_parser(), options.shell))
    return 0

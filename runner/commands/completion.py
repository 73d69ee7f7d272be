"""The command `completion`."""

from __future__ import annotations

import argparse
import sys

from rootdisk.cli.completion import script


def completion_command(options: argparse.Namespace) -> int:
    """Print the completion script of a shell."""
    sys.stdout.write(script(options.whole_parser(), options.shell))
    return 0

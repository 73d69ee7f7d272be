"""What the command `completion` does."""

from __future__ import annotations

import argparse
import sys

from runner.cli import parser
from runner.completion import script


def completion_command(options: argparse.Namespace) -> int:
    sys.stdout.write(script(parser(), options.shell))
    return 0

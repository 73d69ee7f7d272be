"""The runner's main function. Standard output is data, standard error is talk; only `main` prints errors."""

from __future__ import annotations

import sys
from collections.abc import Sequence

from rootdisk.cli.arguments import command_first
from rootdisk.cli.commands import load
from rootdisk.errors import RootdiskError
from rootdisk.system.debug import show
from rootdisk.system.notices import show_by
from rootdisk.system.stdio import OutputError, discard_output, settle, speak_utf8
from rootdisk.text import describe_error, error_text, lack
from runner.parser import COMMANDS, parser

__all__ = ["main", "parser"]

FAILED, INTERRUPTED = 125, 130


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status: 125 if the runner failed, 130 if interrupted, for boot the program's own."""
    if argv is None:
        speak_utf8()
    settle()
    show_by(lambda text: print(f"runner: {error_text(text)}", file=sys.stderr, flush=True))
    words = command_first(list(sys.argv[1:] if argv is None else argv), ("--ca-file", "--platform", "--policy"))
    if words[:1] == ["help"]:
        words = [*words[1:2], "--help"]
    debug = False
    try:
        try:
            options = parser(words[0] if words else "").parse_args(words)
            debug = options.debug
            if debug:
                show()
            status = load("runner.commands", COMMANDS, options.command)(options)
        except (RootdiskError, SystemExit):  # --help and --version exit
            sys.stdout.flush()
            raise
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        discard_output()  # its reader may be gone
        return INTERRUPTED
    except BrokenPipeError:
        discard_output()
        return FAILED
    except (RootdiskError, OSError, MemoryError, RuntimeError) as err:
        if isinstance(err, MemoryError | RuntimeError) and not lack(err):
            raise
        if isinstance(err, OutputError):
            discard_output()
        if debug:
            import traceback

            traceback.print_exc()
        print(f"runner: {error_text(describe_error(err))}", file=sys.stderr)
        return FAILED

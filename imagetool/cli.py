"""The imagetool command: errors and exit statuses. Standard output is data, standard error is talk."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence

from imagetool.parser import COMMANDS, parser
from rootdisk.cli.arguments import command_first
from rootdisk.cli.commands import load
from rootdisk.errors import RootdiskError
from rootdisk.system.notices import show_by
from rootdisk.system.stdio import OutputError, discard_output, settle, speak_utf8
from rootdisk.text import describe_error, error_text, lack


def _with_run(words: list[str]) -> list[str]:
    """Insert doit's command run before its first option, as plain doit does: `doit -n 2 build` is `doit run -n 2 build`."""
    at = 1
    while at < len(words) and words[at].startswith("-"):
        if words[at].partition("=")[0] not in ("-f", "--file", "--set", "--debug", "-h", "--help", "--"):
            return [*words[:at], "run", *words[at:]]
        at += 2 if words[at] in ("-f", "--file", "--set") else 1
    return words


def _end(number: int, frame: object) -> None:
    """Turn signals into an exception, so that half-written files are removed as after an error."""
    signal.signal(number, signal.SIG_IGN)
    sys.exit(128 + number)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit status: 0, 1 (failed, or a difference was found), 2 (wrong input), 130."""
    if argv is None:
        speak_utf8()
        for number in (signal.SIGTERM, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, _end)
    settle()
    show_by(lambda text: print(f"imagetool: {error_text(text)}", file=sys.stderr, flush=True))
    words = command_first(list(sys.argv[1:] if argv is None else argv), ("--ca-file", "--platform"))
    if words[:1] == ["doit"]:
        words = _with_run(words)
    if words[:1] == ["help"]:
        words = [*words[1:2], "--help"]
    debug = False
    try:
        try:
            options = parser(words[0] if words else "").parse_args(words)
            debug = options.debug
            from rootdisk.durable import keep_others_out

            keep_others_out()
            return load("imagetool.commands", COMMANDS, options.command)(options)
        finally:
            sys.stdout.flush()
    except KeyboardInterrupt:
        return 130
    except SystemExit as err:  # --help, and a project that doit cannot load
        if not isinstance(err.code, str):
            raise
        print(error_text(err.code), file=sys.stderr)
        return 1
    except BrokenPipeError:
        discard_output()
        return 1
    except ModuleNotFoundError as err:  # an installation for the runner alone lacks what building needs
        print(f"imagetool: {err.name} is not installed: pip install 'rootdisk[build]'", file=sys.stderr)
        return 1
    except (RootdiskError, OSError, MemoryError, RuntimeError) as err:
        if isinstance(err, MemoryError | RuntimeError) and not lack(err):
            raise
        if isinstance(err, OutputError):
            discard_output()
        if debug:
            import traceback

            traceback.print_exc()
        print(f"imagetool: {error_text(describe_error(err))}", file=sys.stderr)
        return err.exit_status if isinstance(err, RootdiskError) else 1

"""Read what a program writes, up to a limit in bytes and time: one that writes without end takes no more memory than that."""

from __future__ import annotations

import errno
import os
import selectors
import subprocess
import time

_PIECE_BYTES = 64 << 10
_INPUT_BYTES = 512  # POSIX's PIPE_BUF: a pipe that is ready takes so much without waiting


def exchange(
    process: subprocess.Popen[bytes], stdin: bytes | None, timeout_s: float | None, max_bytes: int
) -> tuple[bytes, bytes]:
    """Give a program `stdin`, wait for its end, and return its output and errors. Its streams are pipes.

    Raises:
        TimeoutError: It did not end within `timeout_s` seconds.
        OSError: It has written more than `max_bytes`.
    """
    assert process.stdout is not None
    assert process.stderr is not None
    name = str(process.args[0]) if isinstance(process.args, list) else ""
    late = TimeoutError(errno.ETIMEDOUT, f"no answer within {timeout_s or 0:g} s", name)
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    parts: dict[int, list[bytes]] = {process.stdout.fileno(): [], process.stderr.fileno(): []}
    left, rest = max_bytes, memoryview(stdin or b"")
    with selectors.PollSelector() as selector:
        for stream in (process.stdout, process.stderr):
            selector.register(stream, selectors.EVENT_READ)
        if process.stdin is not None:
            selector.register(process.stdin, selectors.EVENT_WRITE)
        while selector.get_map():
            ready = selector.select(None if deadline is None else max(0.0, deadline - time.monotonic()))
            if deadline is not None and time.monotonic() >= deadline:
                raise late
            for key, _ in ready:
                if key.fileobj is process.stdin:
                    rest = _written(key.fd, rest)
                    is_over = not rest
                else:
                    data = os.read(key.fd, _PIECE_BYTES)
                    parts[key.fd].append(data)
                    left -= len(data)
                    is_over = not data
                if left < 0:
                    raise OSError(errno.EFBIG, f"it has written more than {max_bytes:,} bytes", name)
                if is_over:
                    selector.unregister(key.fileobj)
                    if key.fileobj is process.stdin:
                        process.stdin.close()
    try:
        process.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
    except subprocess.TimeoutExpired:
        raise late from None
    out, err = (b"".join(pieces) for pieces in parts.values())
    return out, err


def _written(fd: int, data: memoryview) -> memoryview:
    """Write the first bytes of `data`, and return the rest; nothing if the program does not read any more."""
    try:
        return data[os.write(fd, data[:_INPUT_BYTES]) :] if data else data
    except BrokenPipeError:
        return data[:0]

"""Images without Debian: one static program from scratch, and BusyBox alone."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.support.debian_images import PATH, Recipe

COMPILER = shutil.which("musl-gcc") or shutil.which("gcc")
needs_compiler = pytest.mark.skipif(COMPILER is None, reason="no C compiler")

# A web server as Go's would be: static, no files, its own user's number, ends cleanly on SIGTERM.
_SERVER = r"""
#include <arpa/inet.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
static void stop(int number) {
    static const char text[] = "shutting down\n";
    (void)number;
    if (write(2, text, sizeof text - 1) < 0)
        _exit(1);
    _exit(0);
}
int main(void) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(80)};
    int listener = socket(AF_INET, SOCK_STREAM, 0), client;
    signal(SIGTERM, stop);
    if (bind(listener, (struct sockaddr *)&at, sizeof at) || listen(listener, 8)) {
        perror("port 80");
        return 1;
    }
    puts("listening on :80");
    fflush(stdout);
    while ((client = accept(listener, NULL, NULL)) >= 0) {
        char text[1000], where[200];
        if (read(client, text, sizeof text) < 0 || !getcwd(where, sizeof where))
            return 1;
        snprintf(text, sizeof text, "HTTP/1.0 200 OK\r\n\r\nhello from scratch %d %d %s %s\n", getuid(), getgid(),
                 getenv("HOME"), where);
        if (write(client, text, strlen(text)) < 0)
            return 1;
        close(client);
    }
    return 1;
}
"""


def scratch(folder: Path) -> Recipe:
    """`FROM scratch`, COPY of one program, USER 65534:65534."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "server.c").write_text(_SERVER)
    assert COMPILER is not None
    subprocess.run([COMPILER, "-static", "-Os", "-s", "-o", "server", "server.c"], cwd=folder, check=True)
    config = {"Entrypoint": ["/server"], "User": "65534:65534", "ExposedPorts": {"80/tcp": {}}, "Env": [PATH]}
    return Recipe(config, files={"server": (folder / "server").read_bytes()})


def busybox(folder: Path) -> Recipe:
    """BusyBox from Debian's package, with a link for each command, as the image of that name."""
    folder.mkdir(parents=True, exist_ok=True)
    for argv in (["apt-get", "download", "-qq", "busybox-static"], ["sh", "-c", "dpkg -x busybox-static_*.deb ."]):
        done = subprocess.run(argv, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
    program = (folder / "bin/busybox").read_bytes()
    names = subprocess.run([folder / "bin/busybox", "--list"], capture_output=True, text=True, check=True).stdout
    files: dict[str, str | bytes] = {
        "bin/busybox": program,
        "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www-data:/var/www:/bin/false\n",
        "etc/group": "root:x:0:\nwww-data:x:33:\n",
        "var/www/index.html": "hello from busybox\n",
    }
    links = {f"bin/{name}": "busybox" for name in names.split() if name != "busybox"}
    config = {"Cmd": ["httpd", "-f", "-vv", "-p", "80", "-u", "www-data", "-h", "/var/www"], "Env": [PATH]}
    return Recipe(config, files=files, links=links)

"""Real programs in a sandbox with --allow and --secret: what they fetch, and what they are refused."""

from __future__ import annotations

import base64
import functools
import ssl
import subprocess
import threading
import zipfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import trustme

from tests.support.commands import Runner, run
from tests.support.debian_images import Recipe, make_image, needs_mmdebstrap

pytestmark = [pytest.mark.vm, pytest.mark.nightly]
VALUE = "s3cr3t-Value-of-40-characters-0123456789"
PACKAGES = "ca-certificates curl git python3-pip python3-requests nodejs openssl"


class _Handler(SimpleHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        if self.path.startswith("/repo.git") and not self.headers.get("Authorization"):
            self.send_response(401)
            self.send_header("WWW-Authenticate", 'Basic realm="git"')
            self.send_header("Content-Length", "0")
            self.end_headers()
        else:
            super().do_GET()

    def end_headers(self) -> None:
        self.server.seen.append((self.path, self.headers.get("Authorization", "")))  # type: ignore[attr-defined]
        super().end_headers()

    def log_message(self, format: str, *words: object) -> None:
        pass


@pytest.fixture
def site(tmp_path: Path) -> Iterator[ThreadingHTTPServer]:
    """files.test over TLS: a text, an index of Python packages, a git repository and an apt repository."""
    folder = tmp_path / "site"
    (folder / "simple/tiny").mkdir(parents=True)
    (folder / "text").write_text("a text\n")
    wheel = "tiny-1.0-py3-none-any.whl"
    (folder / "simple/tiny/index.html").write_text(f'<a href="{wheel}">{wheel}</a>')
    with zipfile.ZipFile(folder / "simple/tiny" / wheel, "w") as file:
        file.writestr("tiny.py", "print('tiny runs')\n")
        file.writestr("tiny-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
        file.writestr("tiny-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        file.writestr("tiny-1.0.dist-info/RECORD", "tiny.py,,\ntiny-1.0.dist-info/RECORD,,\n")
    (folder / "apt").mkdir()
    (folder / "apt/Packages").write_text("")
    git = ["git", "-C", str(folder), "-c", "user.name=a", "-c", "user.email=a@b.test"]
    subprocess.run([*git, "init", "-q", "work"], check=True)
    (folder / "work/README").write_text("of git\n")
    subprocess.run([*git[:2], str(folder / "work"), *git[3:], "add", "README"], check=True)
    subprocess.run([*git[:2], str(folder / "work"), *git[3:], "commit", "-qm", "x"], check=True)
    subprocess.run([*git, "clone", "-q", "--bare", "work", "repo.git"], check=True)
    subprocess.run([*git[:2], str(folder / "repo.git"), "update-server-info"], check=True)
    ca = trustme.CA()
    ca.cert_pem.write_to_path(tmp_path / "ca.pem")
    server = ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Handler, directory=str(folder)))
    server.seen = []  # type: ignore[attr-defined]
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    ca.issue_cert("files.test").configure_cert(context)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@needs_mmdebstrap
def test_programs(runner: Runner, tmp_path: Path, site: ThreadingHTTPServer) -> None:
    image = make_image(tmp_path / "image", Recipe({"Cmd": ["sleep", "10000"]}, PACKAGES))
    built = run("imagetool", "build", image, f"oci:{tmp_path}/built:1", timeout=900)
    assert built.returncode == 0, built.stderr
    port = site.server_address[1]
    base = f"https://files.test:{port}"
    secret = ("--secret", f"TOKEN=env:ROOTDISK_TEST@files.test:{port}", "--ca-file", str(tmp_path / "ca.pem"))
    boot = ("-d", "--name", "programs", "-m", "1g", *secret, "--add-host", "files.test:127.0.0.1")
    done = runner("boot", *boot, f"oci:{tmp_path}/built:1", ROOTDISK_TEST=VALUE, timeout=600)
    assert done.returncode == 0, done.stderr

    def sh(script: str, *, status: int = 0) -> str:
        """What a script in the sandbox prints, on both streams."""
        done = runner("exec", "programs", "sh", "-c", f"exec 2>&1; {script}", timeout=600)
        assert done.returncode == status, done.stdout + done.stderr
        return str(done.stdout)

    def seen(path: str) -> list[str]:
        return [text for where, text in site.seen if where == path]  # type: ignore[attr-defined]

    bearer = f"Bearer {VALUE}"
    assert sh(f'curl -sSf -H "Authorization: Bearer $TOKEN" {base}/text') == "a text\n"
    assert seen("/text") == [bearer]
    code = f"import os, requests; print(requests.get('{base}/text', headers={{'Authorization': 'Bearer ' + os.environ['TOKEN']}}).text)"
    assert sh(f'python3 -c "{code}"') == "a text\n\n"
    code = f"fetch('{base}/text', {{headers: {{Authorization: 'Bearer ' + process.env.TOKEN}}}}).then(a => a.text()).then(console.log)"
    assert sh(f'node -e "{code}"') == "a text\n\n"
    assert seen("/text") == [bearer] * 3
    sh(f'git clone -q "https://me:$TOKEN@files.test:{port}/repo.git" /tmp/repo')
    assert sh("cat /tmp/repo/README") == "of git\n"
    basic = "Basic " + base64.b64encode(f"me:{VALUE}".encode()).decode()
    assert basic in [text for _, text in site.seen]  # type: ignore[attr-defined]
    sh(f"pip install -q --root-user-action=ignore --break-system-packages --index-url {base}/simple/ tiny")
    assert sh("python3 -m tiny") == "tiny runs\n"
    sh(f"echo 'deb [trusted=yes] {base}/apt ./' > /etc/apt/sources.list; apt-get update")
    assert seen("/apt/./Packages")
    # what is refused
    assert "403" in sh("curl -sS https://evil.test/; true")
    refused = sh(f"curl -sS -x http://127.0.0.1:3128 http://files.test:{port + 1}/; true")
    assert f"port {port + 1} is not allowed by --allow files.test:{port}" in refused
    assert "403 Forbidden" in sh("openssl s_client -proxy 127.0.0.1:3128 -connect evil.test:443 < /dev/null; true")
    assert "alert" in sh(
        f"openssl s_client -proxy 127.0.0.1:3128 -connect files.test:{port} -servername evil.test < /dev/null; true"
    )
    assert "New, TLSv1.3" in sh(
        f"openssl s_client -proxy 127.0.0.1:3128 -connect files.test:{port} -servername files.test < /dev/null; true"
    )
    assert VALUE not in sh("cat /proc/*/environ; cat /run/rootdisk/*")
    assert sh("grep -c BEGIN /etc/ssl/certs/ca-certificates.crt") != "1\n"
    runner("rm", "-f", "programs")

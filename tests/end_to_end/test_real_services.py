"""Images that people run, each with the config of its Dockerfile: it starts, answers, logs, and ends by its stop signal."""

from __future__ import annotations

import contextlib
import shutil
import socket
import subprocess
import urllib.request
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from tests.support import services_data, services_web, static_images
from tests.support.commands import ROOT, Runner, run
from tests.support.debian_images import Recipe, make_image, needs_mmdebstrap
from tests.support.ports import free_port
from tests.support.waiting import until

pytestmark = [pytest.mark.vm, pytest.mark.nightly]
ANSWER_S = 600  # without KVM, and on a machine that does other things, a database takes minutes to create its files


class Service:
    """A sandbox in the background, and the port of this host that leads to its own."""

    def __init__(self, runner: Runner, name: str, port: int) -> None:
        self.runner, self.name, self.port = runner, name, port

    def exec(self, *command: str) -> str:
        """Run a command in the sandbox. Return what it prints."""
        done = self.runner("exec", self.name, *command)
        assert done.returncode == 0, done.stderr + self.logs()
        return done.stdout

    def logs(self) -> str:
        """Return what the program has printed, on both streams."""
        done = self.runner("logs", self.name)
        return done.stdout + done.stderr

    def is_running(self) -> bool:
        return self.name in self.runner("ps", "-q").stdout.split()

    def answer(self, ask: Callable[[], str]) -> str:
        """Ask until there is an answer."""

        def asked() -> str:
            with contextlib.suppress(OSError):
                if answer := ask():
                    return answer
            assert self.is_running(), self.logs()
            return ""

        return until(asked, ANSWER_S, 0.5)

    def http(self, path: str = "/") -> str:
        """Return the text that the service answers."""

        def ask() -> str:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{path}", timeout=20) as answer:
                return str(answer.read().decode())

        return self.answer(ask)

    def talk(self, line: str) -> str:
        """Send a line, and return the line that comes back."""

        def ask() -> str:
            with socket.create_connection(("127.0.0.1", self.port), 20) as connection:
                connection.sendall(line.encode() + b"\r\n")
                return connection.recv(1000).decode()

        return self.answer(ask)

    def stop(self) -> int:
        """Stop it as a user does. Return the status that its program ended with."""
        done = self.runner("stop", "-t", "60", self.name)
        assert done.returncode == 0, done.stderr
        return int(self.runner("wait", self.name).stdout.split()[-1])


Serve = Callable[..., Service]


@pytest.fixture
def serve(tmp_path: Path, demo: str, empty_runner: Runner) -> Serve:
    """A function that makes an image, builds its disk, and boots it with a port and more options."""

    def start(name: str, recipe: Recipe, port: int, *options: str, command: Sequence[str] = ()) -> Service:
        source = make_image(tmp_path / name, recipe)
        (tmp_path / "cache").mkdir(exist_ok=True)
        (tmp_path / "cache/kernels").symlink_to(ROOT / "cache/kernels")
        artifact = f"oci:{tmp_path}/disks:{name}"
        built = run("imagetool", "build", "-q", "--size", "2GiB", source, artifact, cwd=tmp_path, timeout=900)
        assert (built.returncode, built.stderr) == (0, ""), built.stderr
        host = free_port()
        booted = empty_runner("boot", "-d", "--name", name, "-p", f"{host}:{port}", *options, artifact, *command)
        assert booted.returncode == 0, booted.stderr
        return Service(empty_runner, name, host)

    return start


@needs_mmdebstrap
def test_nginx(serve: Serve) -> None:
    """Root's master, nginx's workers; logs are links to the standard streams; SIGQUIT lets requests finish."""
    nginx = serve("nginx", services_web.NGINX, 80)
    assert nginx.http() == "hello from nginx\n"
    owners = nginx.exec("sh", "-c", "for p in $(pidof nginx); do stat -c %U /proc/$p; done").split()
    assert sorted(set(owners)) == ["nginx", "root"]
    assert nginx.exec("nginx", "-s", "reload") == ""  # by its PID file
    assert nginx.http() == "hello from nginx\n"
    assert nginx.stop() == 0
    done = nginx.runner("logs", "nginx")
    assert "prepared by 0 on nginx" in done.stdout
    assert '"GET / HTTP/1.1" 200' in done.stdout
    assert "signal 3 (SIGQUIT)" in done.stderr
    assert nginx.runner("start", "nginx").returncode == 0  # its PID file is gone
    assert nginx.http() == "hello from nginx\n"


@needs_mmdebstrap
def test_haproxy(serve: Serve) -> None:
    """Not root, and on port 80; log to stdout; SIGUSR1 ends it softly."""
    haproxy = serve("haproxy", services_web.HAPROXY, 80)
    assert haproxy.http() == "hello from haproxy"
    assert haproxy.exec("sh", "-c", "id -un; pwd").split() == ["haproxy", "/var/lib/haproxy"]
    status = haproxy.stop()
    assert "GET / HTTP/1.1" in haproxy.logs()
    assert status == 0


@needs_mmdebstrap
def test_httpd(serve: Serve) -> None:
    """Logs to /proc/self/fd/1 and 2 as www-data; SIGWINCH is its stop signal."""
    httpd = serve("httpd", services_web.HTTPD, 80)
    assert httpd.http() == "hello from httpd\n"
    assert httpd.stop() == 0
    done = httpd.runner("logs", "httpd")
    assert "GET / HTTP/1.1 200" in done.stdout
    assert "caught SIGWINCH" in done.stderr


@needs_mmdebstrap
def test_caddy(serve: Serve) -> None:
    """A program of Go with a file capability, so that a user without rights may use port 80."""
    caddy = serve("caddy", services_web.CADDY, 80)
    assert caddy.http() == "hello from caddy\n"
    assert "cap_net_bind_service=ep" in caddy.exec("getcap", "/usr/bin/caddy")
    assert "admin endpoint started" in caddy.logs()
    assert caddy.stop() == 0
    assert "shutdown complete" in caddy.logs()


@needs_mmdebstrap
def test_node(serve: Serve) -> None:
    node = serve("node", services_web.NODE, 8080, "-e", "PORT=8080", "--hostname", "web")
    assert node.http("/cats") == "hello from node 1000 /home/node web\n"
    assert node.stop() == 0
    assert sorted(node.logs().splitlines()) == ["GET /cats", "closed", "listening"]


@needs_mmdebstrap
def test_flask(serve: Serve) -> None:
    """A user by number that is not in /etc/passwd; tini is process 1 and passes the signal on."""
    flask = serve("flask", services_web.FLASK, 8000)
    assert flask.http() == "hello from flask 10001 0 / /app\n"
    assert flask.exec("cat", "/proc/1/comm") == "tini\n"
    assert flask.stop() == 128 + 15
    assert "GET / HTTP/1.1" in flask.logs()


@static_images.needs_compiler
def test_from_scratch(serve: Serve, tmp_path: Path) -> None:
    """A user by number, and no file but the program."""
    scratch = serve("scratch", static_images.scratch(tmp_path / "program"), 80)
    assert scratch.http() == "hello from scratch 65534 65534 / /\n"
    assert scratch.stop() == 0
    assert sorted(scratch.logs().splitlines()) == ["listening on :80", "shutting down"]


@pytest.mark.skipif(shutil.which("apt-get") is None, reason="no apt-get, which fetches busybox-static")
def test_busybox(serve: Serve, tmp_path: Path) -> None:
    """Its httpd as www-data after it has port 80; it catches no SIGTERM."""
    busybox = serve("busybox", static_images.busybox(tmp_path / "program"), 80)
    assert busybox.http() == "hello from busybox\n"
    assert busybox.exec("sh", "-c", "ps -o user,args | grep '[h]ttpd'").split()[0] == "www-data"
    assert busybox.stop() == 128 + 15
    assert "response:200" in busybox.logs()


@needs_mmdebstrap
@pytest.mark.skipif(shutil.which("psql") is None, reason="psql is not installed")
def test_postgresql(serve: Serve) -> None:
    """Root gives the volume to postgres; initdb; a query over the published port; data outlives a stop."""
    postgres = serve("postgres", services_data.POSTGRES, 5432, "-e", "POSTGRES_PASSWORD=secret")

    def query(text: str) -> str:
        url = f"postgresql://postgres:secret@127.0.0.1:{postgres.port}/postgres"
        done = subprocess.run(["psql", "-At", "-c", text, url], capture_output=True, text=True)
        return done.stdout.strip()

    assert postgres.answer(lambda: query("select name from cats")) == "Mia"
    assert query("show lc_collate") == "en_US.utf8"
    assert query("insert into cats values ('Tom') returning name").split()[0] == "Tom"
    listing = postgres.exec("stat", "-c", "%U %a", "/var/lib/postgresql/data", "/var/run/postgresql")
    assert listing.split("\n")[:2] == ["postgres 700", "postgres 3777"]
    assert postgres.exec("psql", "-U", "postgres", "-Atc", "select 1").strip() == "1"  # by its socket in /run
    assert postgres.stop() == 0
    assert "received fast shutdown request" in postgres.logs()
    assert postgres.runner("start", "postgres").returncode == 0
    assert postgres.answer(lambda: query("select count(*) from cats")) == "2"


@needs_mmdebstrap
def test_redis(serve: Serve) -> None:
    redis = serve("redis", services_data.REDIS, 6379)
    assert redis.talk("PING") == "+PONG\r\n"
    assert redis.exec("redis-cli", "PING") == "PONG\n"
    assert redis.exec("redis-cli", "SET", "cat", "Mia") == "OK\n"
    assert redis.exec("sh", "-c", "stat -c %U /proc/$(pidof redis-server) /data").split() == ["redis", "redis"]
    assert redis.stop() == 0
    assert "Redis is now ready to exit, bye bye" in redis.logs()
    assert redis.runner("start", "redis").returncode == 0
    assert redis.talk("GET cat") == "$3\r\nMia\r\n"  # from its volume


@needs_mmdebstrap
def test_mariadb(serve: Serve) -> None:
    mariadb = serve("mariadb", services_data.MARIADB, 3306, "-e", "MARIADB_ROOT_PASSWORD=secret", "-m", "1g")
    words = ["mariadb", "-uroot", "-psecret", "-NBe", "select concat(6*7, current_user())"]
    assert mariadb.answer(lambda: mariadb.runner("exec", "mariadb", *words).stdout).strip() == "42root@localhost"
    with socket.create_connection(("127.0.0.1", mariadb.port), 20) as connection:
        assert b"MariaDB" in connection.recv(200)  # its greeting, through the published port
    assert mariadb.stop() == 0
    assert "mariadbd: Shutdown complete" in mariadb.logs()


@needs_mmdebstrap
def test_memcached(serve: Serve) -> None:
    """Words that begin with a dash go to the server, as its entrypoint does it."""
    memcached = serve("memcached", services_data.MEMCACHED, 11211, command=["-vv"])
    assert memcached.talk("set cat 0 0 3\r\nMia") == "STORED\r\n"
    assert memcached.talk("get cat") == "VALUE cat 0 3\r\nMia\r\nEND\r\n"
    assert memcached.exec("id", "-u").strip() == "11211"
    assert memcached.stop() == 0
    assert "server listening" in memcached.logs()
    assert "set cat 0 0 3" in memcached.logs()


@needs_mmdebstrap
@pytest.mark.skipif(shutil.which("ssh") is None, reason="ssh is not installed")
def test_openssh(serve: Serve, tmp_path: Path) -> None:
    """Its directory in /run is there; a key logs in; no two sandboxes have the host keys of the image."""
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", tmp_path / "key"], check=True)
    sshd = serve("sshd", services_data.sshd((tmp_path / "key.pub").read_text()), 22)
    options = [
        "-o",
        f"UserKnownHostsFile={tmp_path}/known",
        "-o",
        "StrictHostKeyChecking=accept-new",
        "-o",
        "BatchMode=yes",
    ]
    argv = ["ssh", "-F", "none", *options, "-i", str(tmp_path / "key"), "-p", str(sshd.port), "root@127.0.0.1"]

    def login(*command: str) -> str:
        return subprocess.run([*argv, *command], capture_output=True, text=True, timeout=60).stdout

    assert sshd.answer(lambda: login("id -un; stat -c %a /run/sshd; tty || true")).split("\n")[:2] == ["root", "755"]
    assert login("-tt", "tty").startswith("/dev/pts/")
    assert (tmp_path / "known").read_text().split()[1] == "ssh-ed25519"
    keys = sshd.exec("cat", "/etc/ssh/ssh_host_ed25519_key.pub")
    assert keys.split()[1] == (tmp_path / "known").read_text().split()[2]
    assert sshd.stop() == 0
    assert "Accepted publickey for root" in sshd.logs()
    assert "Received signal 15; terminating." in sshd.logs()


@needs_mmdebstrap
def test_systemd(serve: Serve) -> None:
    """Process 1 of the image, although /run and a directory of /sys are its volumes; a unit answers over HTTP."""
    systemd = serve("systemd", services_web.SYSTEMD, 80)
    assert systemd.http() == "hello from a unit\n"
    assert systemd.exec("systemctl", "is-system-running", "--wait") == "running\n"
    assert systemd.exec("systemctl", "is-active", "multi-user.target") == "active\n"
    assert systemd.exec("cat", "/proc/1/comm") == "systemd\n"
    assert "Started" in systemd.exec("journalctl", "--no-pager", "-u", "nginx")
    assert systemd.stop() == 0

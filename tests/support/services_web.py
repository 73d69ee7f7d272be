"""Images of web servers and applications: each with the config that its Dockerfile on Docker Hub gives it."""

from __future__ import annotations

from tests.support.debian_images import PATH, Recipe

_NGINX_ENTRYPOINT = """#!/bin/sh
# Run the scripts of /docker-entrypoint.d, then the command.
set -e
for script in /docker-entrypoint.d/*.sh; do
    [ ! -x "$script" ] || "$script"
done
exec "$@"
"""
_NGINX_CONF = """user nginx;
worker_processes auto;
error_log /var/log/nginx/error.log notice;
pid /var/run/nginx.pid;
events { worker_connections 1024; }
http {
    access_log /var/log/nginx/access.log;
    server { listen 80; listen [::]:80; root /usr/share/nginx/html; }
}
"""
NGINX = Recipe(
    config={
        "Env": [PATH, "NGINX_VERSION=1.22.1", "PKG_RELEASE=9"],
        "Entrypoint": ["/docker-entrypoint.sh"],
        "Cmd": ["nginx", "-g", "daemon off;"],
        "ExposedPorts": {"80/tcp": {}},
        "StopSignal": "SIGQUIT",
        "Labels": {"maintainer": "NGINX Docker Maintainers <docker-maint@nginx.com>"},
    },
    packages="nginx-light",
    run="groupadd --system --gid 101 nginx\n"
    "useradd --system --gid nginx --no-create-home --home /nonexistent --shell /bin/false --uid 101 nginx\n"
    "ln -sf /dev/stdout /var/log/nginx/access.log; ln -sf /dev/stderr /var/log/nginx/error.log\n"
    "mkdir /docker-entrypoint.d",
    files={
        "docker-entrypoint.sh": _NGINX_ENTRYPOINT,
        "docker-entrypoint.d/10-hello.sh": "#!/bin/sh\necho prepared by $(id -u) on $(hostname)\n",
        "etc/nginx/nginx.conf": _NGINX_CONF,
        "usr/share/nginx/html/index.html": "hello from nginx\n",
    },
)

_HAPROXY_ENTRYPOINT = """#!/bin/sh
set -e
[ "${1#-}" = "$1" ] || set -- haproxy "$@"
if [ "$1" = haproxy ]; then
    shift
    set -- haproxy -W -db "$@"
fi
exec "$@"
"""
_HAPROXY_CFG = """global
    log stdout format raw local0
defaults
    mode http
    timeout client 5s
    timeout server 5s
    timeout connect 5s
frontend web
    log global
    option httplog
    bind :80
    http-request return status 200 content-type text/plain string "hello from haproxy"
"""
HAPROXY = Recipe(
    config={
        "Env": [PATH, "HAPROXY_VERSION=2.6.12"],
        "Entrypoint": ["docker-entrypoint.sh"],
        "Cmd": ["haproxy", "-f", "/usr/local/etc/haproxy/haproxy.cfg"],
        "User": "haproxy",
        "WorkingDir": "/var/lib/haproxy",
        "StopSignal": "SIGUSR1",
    },
    packages="haproxy",
    files={
        "usr/local/bin/docker-entrypoint.sh": _HAPROXY_ENTRYPOINT,
        "usr/local/etc/haproxy/haproxy.cfg": _HAPROXY_CFG,
    },
)

_HTTPD_CONF = """ServerRoot /usr/local/apache2
ServerName localhost
LoadModule mpm_event_module /usr/lib/apache2/modules/mod_mpm_event.so
LoadModule authz_core_module /usr/lib/apache2/modules/mod_authz_core.so
LoadModule dir_module /usr/lib/apache2/modules/mod_dir.so
Listen 80
User www-data
Group www-data
PidFile /usr/local/apache2/logs/httpd.pid
DocumentRoot /usr/local/apache2/htdocs
<Directory /usr/local/apache2/htdocs>
    Require all granted
</Directory>
ErrorLog /proc/self/fd/2
CustomLog /proc/self/fd/1 "%h %r %>s"
"""
HTTPD = Recipe(
    config={
        "Env": ["PATH=/usr/local/apache2/bin:" + PATH.partition("=")[2], "HTTPD_PREFIX=/usr/local/apache2"],
        "Cmd": ["httpd-foreground"],
        "ExposedPorts": {"80/tcp": {}},
        "StopSignal": "SIGWINCH",
        "WorkingDir": "/usr/local/apache2",
    },
    packages="apache2-bin",
    run="mkdir -p /usr/local/apache2/logs",
    files={
        "usr/local/apache2/bin/httpd-foreground": "#!/bin/sh\nset -e\nrm -f /usr/local/apache2/logs/httpd.pid\n"
        'exec apache2 -DFOREGROUND -f /usr/local/apache2/conf/httpd.conf "$@"\n',
        "usr/local/apache2/conf/httpd.conf": _HTTPD_CONF,
        "usr/local/apache2/htdocs/index.html": "hello from httpd\n",
    },
)

CADDY = Recipe(
    config={
        "Env": [PATH, "CADDY_VERSION=v2.6.2", "XDG_CONFIG_HOME=/config", "XDG_DATA_HOME=/data"],
        "Cmd": ["caddy", "run", "--config", "/etc/caddy/Caddyfile", "--adapter", "caddyfile"],
        "ExposedPorts": {"2019/tcp": {}, "443/tcp": {}, "443/udp": {}, "80/tcp": {}},
        "WorkingDir": "/srv",
    },
    packages="caddy libcap2-bin",
    run="mkdir -p /config/caddy /data/caddy /srv; setcap cap_net_bind_service=+ep /usr/bin/caddy",
    files={
        "etc/caddy/Caddyfile": ":80 {\n    root * /usr/share/caddy\n    file_server\n    log\n}\n",
        "usr/share/caddy/index.html": "hello from caddy\n",
    },
)

_NODE_ENTRYPOINT = """#!/bin/sh
set -e
if [ "${1#-}" != "$1" ] || [ -z "$(command -v "$1")" ] || { [ -f "$1" ] && ! [ -x "$1" ]; }; then
    set -- node "$@"
fi
exec "$@"
"""
_NODE_APP = """const http = require('http');
const server = http.createServer((request, response) => {
  console.log(request.method, request.url);
  response.end(`hello from node ${process.getuid()} ${process.env.HOME} ${require('os').hostname()}\\n`);
});
server.listen(process.env.PORT || 3000, () => console.log('listening'));
process.on('SIGTERM', () => server.close(() => { console.error('closed'); process.exit(0); }));
"""
NODE = Recipe(
    config={
        "Env": [PATH, "NODE_VERSION=18", "YARN_VERSION=1.22.19", "NODE_ENV=production"],
        "Entrypoint": ["docker-entrypoint.sh"],
        "Cmd": ["server.js"],
        "User": "node",
        "WorkingDir": "/usr/src/app",
        "ExposedPorts": {"3000/tcp": {}},
    },
    packages="nodejs",
    run="groupadd --gid 1000 node; useradd --uid 1000 --gid node --shell /bin/bash --create-home node",
    files={"usr/local/bin/docker-entrypoint.sh": _NODE_ENTRYPOINT, "usr/src/app/server.js": _NODE_APP},
)

_FLASK_APP = """import os
from flask import Flask
app = Flask(__name__)
@app.route("/")
def hello():
    return f"hello from flask {os.getuid()} {os.getgid()} {os.environ['HOME']} {os.getcwd()}\\n"
"""
FLASK = Recipe(
    config={
        "Env": [PATH, "LANG=C.UTF-8", "PYTHON_VERSION=3.11.2", "FLASK_APP=app", "PYTHONUNBUFFERED=1"],
        "Entrypoint": ["tini", "--"],
        "Cmd": ["flask", "run", "--host=0.0.0.0", "--port=8000"],
        "User": "10001",
        "WorkingDir": "/app",
        "ExposedPorts": {"8000/tcp": {}},
    },
    packages="python3-flask tini",
    files={"app/app.py": _FLASK_APP},
)

SYSTEMD = Recipe(
    config={
        "Env": [PATH, "container=docker", "LC_ALL=C", "DEBIAN_FRONTEND=noninteractive"],
        "Cmd": ["/lib/systemd/systemd"],
        "Volumes": {"/sys/fs/cgroup": {}, "/run": {}, "/tmp": {}},
        "StopSignal": "SIGRTMIN+3",
    },
    packages="systemd-sysv dbus nginx-light",
    run="systemctl enable nginx",
    files={"var/www/html/index.html": "hello from a unit\n"},
)

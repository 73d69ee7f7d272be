"""Images of databases, caches and a login server: each with the config that its Dockerfile gives it."""

from __future__ import annotations

from tests.support.debian_images import PATH, Recipe

_POSTGRES_ENTRYPOINT = """#!/bin/bash
# As root: give the data to postgres and start again as that user. Then: create the cluster once, and run the command.
set -eo pipefail
if [ "$1" = postgres ] && [ "$(id -u)" = 0 ]; then
    mkdir -p "$PGDATA" /var/run/postgresql
    chown -R postgres "$PGDATA"
    chmod 700 "$PGDATA"
    exec gosu postgres "$BASH_SOURCE" "$@"
fi
if [ "$1" = postgres ] && [ ! -s "$PGDATA/PG_VERSION" ]; then
    [ -n "$POSTGRES_PASSWORD" ] || { echo >&2 'Error: POSTGRES_PASSWORD is empty'; exit 1; }
    initdb --username=postgres --pwfile=<(printf '%s\\n' "$POSTGRES_PASSWORD")
    echo 'host all all all scram-sha-256' >>"$PGDATA/pg_hba.conf"
    pg_ctl -D "$PGDATA" -o "-c listen_addresses=''" -w start
    for script in /docker-entrypoint-initdb.d/*.sql; do
        [ ! -f "$script" ] || psql -v ON_ERROR_STOP=1 --username postgres --no-password --no-psqlrc -f "$script"
    done
    pg_ctl -D "$PGDATA" -m fast -w stop
    echo 'PostgreSQL init process complete; ready for start up.'
fi
exec "$@"
"""
POSTGRES = Recipe(
    config={
        "Env": [
            "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/usr/lib/postgresql/15/bin",
            *("GOSU_VERSION=1.14", "LANG=en_US.utf8", "PG_MAJOR=15", "PGDATA=/var/lib/postgresql/data"),
        ],
        "Entrypoint": ["docker-entrypoint.sh"],
        "Cmd": ["postgres"],
        "ExposedPorts": {"5432/tcp": {}},
        "Volumes": {"/var/lib/postgresql/data": {}},
        "StopSignal": "SIGINT",
    },
    packages="postgresql-15 gosu locales",
    run="rm -rf /var/lib/postgresql/15 /etc/postgresql/15\n"
    "localedef -i en_US -c -f UTF-8 -A /usr/share/locale/locale.alias en_US.UTF-8\n"
    "mkdir -p /docker-entrypoint-initdb.d /var/run/postgresql /var/lib/postgresql/data\n"
    "chown postgres:postgres /var/run/postgresql /var/lib/postgresql/data\n"
    "chmod 3777 /var/run/postgresql; chmod 777 /var/lib/postgresql/data\n"
    "echo \"listen_addresses = '*'\" >>/usr/share/postgresql/15/postgresql.conf.sample",
    files={
        "usr/local/bin/docker-entrypoint.sh": _POSTGRES_ENTRYPOINT,
        "docker-entrypoint-initdb.d/first.sql": "create table cats (name text); insert into cats values ('Mia');\n",
    },
)

_REDIS_ENTRYPOINT = """#!/bin/sh
set -e
[ "${1#-}" = "$1" ] || set -- redis-server "$@"
if [ "$1" = redis-server ] && [ "$(id -u)" = 0 ]; then
    find . ! -user redis -exec chown redis '{}' +
    exec gosu redis "$0" "$@"
fi
um="$(umask)"
[ "$um" != 0022 ] || umask 0077
exec "$@"
"""
REDIS = Recipe(
    config={
        "Env": [PATH, "GOSU_VERSION=1.14", "REDIS_VERSION=7.0.15"],
        "Entrypoint": ["docker-entrypoint.sh"],
        "Cmd": ["redis-server", "--protected-mode", "no"],
        "ExposedPorts": {"6379/tcp": {}},
        "Volumes": {"/data": {}},
        "WorkingDir": "/data",
    },
    packages="redis-server gosu",
    run="mkdir /data; chown redis:redis /data",
    files={"usr/local/bin/docker-entrypoint.sh": _REDIS_ENTRYPOINT},
)

_MARIADB_ENTRYPOINT = """#!/bin/bash
set -eo pipefail
if [ "$1" = mariadbd ] && [ "$(id -u)" = 0 ]; then
    find /var/lib/mysql ! -user mysql -exec chown mysql: '{}' +
    find /run/mysqld -maxdepth 0 ! -user mysql -exec chown mysql: '{}' +
    exec gosu mysql "${BASH_SOURCE[0]}" "$@"
fi
if [ "$1" = mariadbd ] && [ ! -d /var/lib/mysql/mysql ]; then
    mariadb-install-db --auth-root-authentication-method=normal --skip-test-db --loose-innodb_log_file_size=10M
    printf "ALTER USER root@localhost IDENTIFIED BY '%s';\\nCREATE USER root@'%%' IDENTIFIED BY '%s';\\nGRANT ALL ON *.* TO root@'%%';\\n" \\
        "$MARIADB_ROOT_PASSWORD" "$MARIADB_ROOT_PASSWORD" >/tmp/first.sql
    set -- "$@" --init-file=/tmp/first.sql
fi
exec "$@"
"""
MARIADB = Recipe(
    config={
        "Env": [PATH, "GOSU_VERSION=1.14", "LANG=C.UTF-8", "MARIADB_VERSION=1:10.11"],
        "Entrypoint": ["docker-entrypoint.sh"],
        "Cmd": ["mariadbd"],
        "ExposedPorts": {"3306/tcp": {}},
        "Volumes": {"/var/lib/mysql": {}},
        "Labels": {"org.opencontainers.image.title": "MariaDB Database"},
    },
    packages="mariadb-server gosu",
    run="rm -rf /var/lib/mysql; mkdir -p /var/lib/mysql /run/mysqld\n"
    "chown -R mysql:mysql /var/lib/mysql /run/mysqld; chmod 1777 /run/mysqld\n"
    "find /etc/mysql -name '*.cnf' -print0 | xargs -0 grep -lZE '^(bind-address|log|user\\s)' |"
    " xargs -rt -0 sed -Ei 's/^(bind-address|log|user\\s)/#&/'\n"
    "printf '[mariadb]\\nhost-cache-size=0\\nskip-name-resolve\\n' >/etc/mysql/mariadb.conf.d/05-skipcache.cnf",
    files={"usr/local/bin/docker-entrypoint.sh": _MARIADB_ENTRYPOINT},
)

MEMCACHED = Recipe(
    config={
        "Env": [PATH, "MEMCACHED_VERSION=1.6.18"],
        "Entrypoint": ["docker-entrypoint.sh"],
        "Cmd": ["memcached"],
        "User": "memcache",
        "ExposedPorts": {"11211/tcp": {}},
    },
    packages="memcached",
    run="usermod --uid 11211 memcache; groupmod --gid 11211 memcache",
    files={
        "usr/local/bin/docker-entrypoint.sh": '#!/bin/sh\nset -e\n[ "${1#-}" = "$1" ] || set -- memcached "$@"\nexec "$@"\n'
    },
)


def sshd(public_key: str) -> Recipe:
    """A login server as docker's own documentation had it; root may log in by `public_key`."""
    return Recipe(
        config={"Env": [PATH, "NOTVISIBLE=in users profile"], "Cmd": ["/usr/sbin/sshd", "-D", "-e"],
                "ExposedPorts": {"22/tcp": {}}},
        packages="openssh-server",
        run="mkdir -p /var/run/sshd; echo 'export VISIBLE=now' >>/etc/profile",
        files={"root/.ssh/authorized_keys": public_key},
    )  # fmt: skip

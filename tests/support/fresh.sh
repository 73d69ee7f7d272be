#!/usr/bin/env bash
# Runs a command in a clean clone on a fresh machine: a minimal Debian with apt, and nothing that was installed for us.
#
#   tests/support/fresh.sh bookworm ./quickstart
#   tests/support/fresh.sh trixie ./quickstart test -n 2
#
# Needs root and mmdebstrap. The machine is a directory below TMPDIR, removed at the end; FRESH=DIR makes it there, keeps
# it and uses it again. The clone is of the project that this script is in, and CLONE=keep uses the machine's own again.
# This machine's settings of apt, pip and certificates go along: they say how packages are reached.
set -eu
[ $# -gt 1 ] || { echo "usage: $0 SUITE COMMAND..." >&2; exit 2; }
suite=$1; shift
project=$(cd -- "$(dirname -- "$0")/../.." && pwd)
if [ -n "${FRESH-}" ]; then
    root=$FRESH
    mkdir -p "$root"
else
    root=$(mktemp -d)
    trap 'rm -rf --one-file-system "$root"' EXIT
fi
if [ ! -e "$root/etc/debian_version" ]; then
    mmdebstrap --quiet --variant=apt --include=ca-certificates,git,python3 "$suite" "$root"
fi
for file in /etc/apt/apt.conf.d /etc/pip.conf /etc/xdg/pip /root/.config/pip /etc/ssl/certs/ca-certificates.crt \
    /etc/hosts /etc/resolv.conf; do
    [ -e "$file" ] || continue
    mkdir -p "$root${file%/*}"
    cp -rLT "$file" "$root$file"
done
if [ "${CLONE-}" != keep ]; then
    rm -rf --one-file-system "$root/root/project"
    git clone -q "$project" "$root/root/project"
fi
# Ways to packages may be in the environment too.
passed=()
while IFS= read -r -d '' variable; do
    case $variable in
        PIP_* | SSL_CERT_* | REQUESTS_CA_BUNDLE=* | *_proxy=* | *_PROXY=*) passed+=("$variable") ;;
    esac
done < <(env -0)
export root
# shellcheck disable=SC2016 # its own shell is to expand it
# A root of its own, as in a chroot no user namespace can be made; it ends with all its processes and mounts.
unshare --mount --pid --fork --kill-child bash -euc '
    mount --make-rprivate /
    mount --bind "$root" "$root"
    cd "$root"
    mount --rbind /dev dev
    mount -t proc proc proc
    mount -t sysfs sys sys
    mount -t tmpfs tmpfs run
    mkdir -p run/lock .old
    pivot_root . .old
    # MNT_DETACH; a minimal system has no umount.
    python3 -c "import ctypes; ctypes.CDLL(None).umount2(b\"/.old\", 2)"
    cd /root/project
    # Not exec: this shell is process 1, and takes note of the end of those who have lost their parent.
    env -i HOME=/root PATH=/usr/sbin:/usr/bin:/sbin:/bin TERM=dumb LANG=C.UTF-8 "$@" || exit
' bash "${passed[@]}" "$@"

#!/bin/sh
# Installs PyVPN for this machine, or removes it again: contrib/install.sh install|uninstall
#
#   PREFIX  its own virtual environment      (/opt/pyvpn)
#   BIN     where commands are linked into   (/usr/local/bin)
#
# 'install' again upgrades. 'uninstall' removes the environment and those links that point into it,
# and leaves the state: users, keys and profiles are not the program's to delete.
set -eu
# Everybody may run what root installs, whatever umask root has.
umask 022

PREFIX=${PREFIX:-/opt/pyvpn}
BIN=${BIN:-/usr/local/bin}
PYTHON=${PYTHON:-python3}
here=$(dirname "$0")
marker=$PREFIX/installed-by-pyvpn

stop() {
    echo "$*" >&2
    exit 1
}

# Whether a link is ours: one that points into the environment.
ours() {
    [ -L "$1" ] || return 1
    case $(readlink "$1") in
    "$PREFIX"/*) ;;
    *) return 1 ;;
    esac
}

remove_links() {
    for name in pyvpn pyvpn-wg twistd pyvpn-twistd; do
        if ours "$BIN/$name"; then rm -f "$BIN/$name"; fi
    done
}

# link PROGRAM NAME: never over something that is not ours
link() {
    if [ -e "$BIN/$2" ] || [ -L "$BIN/$2" ]; then
        echo "note: $BIN/$2 is not PyVPN's and stays; run $PREFIX/bin/$1 by its full name"
    else
        ln -s "$PREFIX/bin/$1" "$BIN/$2"
        echo "linked $BIN/$2"
    fi
}

# The processes that were started from the environment: " PID" each.
running() {
    for entry in /proc/[0-9]*; do
        if tr '\0' '\n' <"$entry/cmdline" 2>/dev/null | head -n 2 | grep -q "^$PREFIX/bin/"; then
            printf ' %s' "${entry#/proc/}"
        fi
    done
}

install() {
    DEPS=run "$here/deps.sh"
    if [ -e "$PREFIX" ] && [ ! -e "$marker" ] && [ -n "$(ls -A "$PREFIX")" ]; then
        stop "$PREFIX is there and not PyVPN's: move it away, or choose another with PREFIX=…"
    fi
    wheels=$(mktemp -d)
    new=
    [ -e "$marker" ] || new=yes
    # A first installation that fails leaves nothing; an upgrade that fails leaves what there is.
    trap 'status=$?; rm -rf "$wheels"; [ $status = 0 ] || [ -z "$new" ] || rm -rf "$PREFIX"' EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    # After an upgrade of the system's Python the old environment runs no more.
    if [ -z "$new" ] && ! "$PREFIX/bin/python" -c 'import pip' 2>/dev/null; then
        rm -rf "$PREFIX"
    fi
    if [ ! -e "$PREFIX/bin/python" ]; then "$PYTHON" -m venv "$PREFIX"; fi
    : >"$marker"
    "$here/wheel.sh" "$PREFIX/bin/python" "$wheels"
    # Once for the dependencies, once for a new build of the same version.
    "$PREFIX/bin/python" -m pip install --quiet --upgrade "$wheels"/*.whl
    "$PREFIX/bin/python" -m pip install --quiet --no-deps --force-reinstall "$wheels"/*.whl

    mkdir -p "$BIN"
    remove_links
    link pyvpn pyvpn
    link pyvpn-wg pyvpn-wg
    if other=$(command -v twistd); then
        echo "note: another twistd is installed ($other), so PyVPN's is pyvpn-twistd"
        link twistd pyvpn-twistd
    else
        link twistd twistd
    fi
    echo "installed $("$PREFIX/bin/pyvpn" --version) in $PREFIX"
    if [ -z "$new" ]; then
        pids=$(running)
        [ -z "$pids" ] || echo "what runs still runs the old version, restart it: pid$pids"
    fi
}

uninstall() {
    pids=$(running)
    [ -z "$pids" ] || stop "PyVPN still runs (pid$pids): stop it with 'pyvpn down NAME' first"
    remove_links
    if [ -e "$marker" ]; then
        rm -rf "$PREFIX"
        echo "removed $PREFIX and its links in $BIN"
    else
        echo "there is no PyVPN in $PREFIX"
    fi
    for state in /var/lib/pyvpn /etc/pyvpn; do
        [ ! -e "$state" ] || echo "left: $state (users, keys, profiles; yours to delete)"
    done
}

case ${1:-} in
install | uninstall) ;;
*)
    echo "usage: $0 install|uninstall" >&2
    exit 2
    ;;
esac
[ "$(id -u)" = 0 ] || stop "to $1 PyVPN for the machine takes root: sudo make $1"
"$1"

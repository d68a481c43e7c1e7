#!/bin/sh
# Unpacks the programs that may own /etc/resolv.conf, each with what this machine lacks for it, for
# the tests that run them: systemd-resolved, resolvconf and openresolv.
#
#   contrib/resolvers.sh [DIRECTORY]     root, where there is apt; default: build/resolvers
#
# Nothing is installed: they exclude each other, and installing one changes /etc/resolv.conf.
set -eu

directory=${1:-$(dirname "$0")/../build/resolvers}
[ ! -e "$directory/complete" ] || exit 0

# NAME PACKAGES...: the packages, and those that they need and this machine has not, as one tree
unpack() {
    tree=$directory/$1
    shift
    rm -rf "$tree" "$tree.debs"
    mkdir -p "$tree/etc" "$tree/usr" "$tree.debs/partial"
    apt-get install -y -q --no-install-recommends --download-only \
        -o Dir::Cache::archives="$(realpath "$tree.debs")" -o APT::Sandbox::User=root \
        -o Debug::NoLocking=1 "$@" </dev/null >"$directory/log" 2>&1 || {
        tail -n 20 "$directory/log" >&2
        return 1
    }
    for deb in "$tree.debs"/*.deb; do
        [ ! -e "$deb" ] || dpkg-deb -x "$deb" "$tree"
    done
    # The tests lay the tree over /usr and /etc, and /sbin is a link into /usr.
    for part in bin sbin lib; do
        [ ! -d "$tree/$part" ] || {
            mkdir -p "$tree/usr/$part"
            cp -a "$tree/$part/." "$tree/usr/$part/"
            rm -r "${tree:?}/$part"
        }
    done
    rm -r "$tree.debs"
}

mkdir -p "$directory"
unpack debian resolvconf 2>/dev/null || {
    # Old lists name versions that are gone.
    apt-get update -q </dev/null >"$directory/log" 2>&1 || true
    unpack debian resolvconf
}
unpack openresolv openresolv
unpack resolved systemd-resolved dbus-daemon
: >"$directory/complete"
echo "unpacked for tests, not installed: systemd-resolved, resolvconf, openresolv ($directory)"

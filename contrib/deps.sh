#!/bin/sh
# The system packages that the build, the tests and the demo need.
#
#   contrib/deps.sh           root: installs what is missing and says so; otherwise names it, status 1
#   contrib/deps.sh --check   installs nothing: names what is missing, status 1 if anything is
#
# DEPS says for what: "build" (a virtual environment with PyVPN in it), "run" (that, and running
# it), "all" (both, and the laboratory of the tests and the demo), the default, "bench" (all that,
# and what the benchmarks measure with and measure PyVPN beside).
set -eu

want=${DEPS:-all}

# a command, or a thing of Python's or C's, and the Debian package that brings it
needs() {
    echo "python:ensurepip python3-venv"
    # python-pytun has wheels for x86_64 only; elsewhere pip compiles it.
    if [ "$(uname -m)" != x86_64 ]; then
        echo "gcc gcc"
        echo "python:header python3-dev"
        echo "libc:header libc6-dev"
    fi
    [ "$want" != build ] || return 0
    echo "ip iproute2"
    [ "$want" != run ] || return 0
    echo "nft nftables"
    echo "ping iputils-ping"
    echo "curl curl"
    echo "sshd openssh-server"
    echo "ssh openssh-client"
    echo "tcpdump tcpdump"
    echo "ethtool ethtool"
    echo "wireguard-go wireguard-go"
    echo "wg wireguard-tools"
    echo "dnsmasq dnsmasq-base"
    echo "udhcpc udhcpc"
    [ "$want" = bench ] || return 0
    echo "iperf3 iperf3"
    echo "openssl openssl"
    echo "openvpn openvpn"
}

present() {
    case $1 in
    python:ensurepip) python3 -c 'import ensurepip, venv' 2>/dev/null ;;
    python:header)
        python3 -c 'import os, sys, sysconfig
sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))'
        ;;
    libc:header) [ -e /usr/include/stdio.h ] ;;
    # sbin is not on everybody's path
    *) PATH=$PATH:/usr/local/sbin:/usr/sbin:/sbin command -v "$1" >/dev/null ;;
    esac
}

missing=$(needs | while read -r command package; do
    present "$command" || echo "$package"
done)
# shellcheck disable=SC2086 # one line of words is meant
missing=$(echo $missing)

[ -n "$missing" ] || exit 0

if [ "${1:-}" = --check ]; then
    echo "missing system packages: $missing (make deps, as root, installs them)"
    exit 1
fi
if [ "$(id -u)" != 0 ]; then
    echo "missing system packages: $missing" >&2
    echo "as root, 'make deps' installs them where there is apt; otherwise install what brings" \
        "these commands with your own package tool" >&2
    exit 1
fi
if ! command -v apt-get >/dev/null; then
    echo "missing system packages (Debian's names): $missing; there is no apt-get here, so install" \
        "what brings them with this system's own package tool" >&2
    exit 1
fi

# A package like openssh-server starts its service as it is installed. The demo wants the program
# alone: Debian's policy-rc.d, answering 101, forbids service starts for as long as we install.
policy=/usr/sbin/policy-rc.d
saved=
restore() {
    rm -f "$policy"
    [ -z "$saved" ] || mv -f "$saved" "$policy"
    saved=
    trap - EXIT
}
trap restore EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
if [ -e "$policy" ] || [ -L "$policy" ]; then
    mv "$policy" "$policy.pyvpn-saved.$$"
    saved=$policy.pyvpn-saved.$$
fi
printf '#!/bin/sh\nexit 101\n' >"$policy"
chmod 755 "$policy"

echo "installing system packages: $missing (no service is started)"
export DEBIAN_FRONTEND=noninteractive
log=$(mktemp)
# shellcheck disable=SC2086
install() { apt-get install -y -q --no-install-recommends $missing </dev/null >"$log" 2>&1; }
# Old lists name versions that are gone. A failed update alone is no reason to stop: one broken
# third-party source does that, and what we want may be known all the same.
apt-get update -q </dev/null >"$log" 2>&1 || true
if ! install; then
    tail -n 20 "$log" >&2
    rm -f "$log"
    echo "apt-get could not install: $missing" >&2
    exit 1
fi
rm -f "$log"
restore

left=$(needs | while read -r command package; do
    present "$command" || echo "$package"
done)
if [ -n "$left" ]; then
    # shellcheck disable=SC2086
    echo "still missing after the installation:" $left >&2
    exit 1
fi
echo "added: $missing"
case " $missing " in
*" openssh-server "*)
    echo "note: openssh-server starts with the machine's next boot unless you disable it" \
        "(systemctl disable ssh); PyVPN needs only the program"
    ;;
esac

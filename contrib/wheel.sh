#!/bin/sh
# Builds PyVPN's wheel: contrib/wheel.sh PYTHON DIRECTORY [options of 'pip wheel']
#
# The build works on a copy. In the source tree setuptools would leave a build/ directory, and pack
# from it what the sources no longer have.
set -eu

python=$1
directory=$2
shift 2

cd "$(dirname "$0")/.."
copy=$(mktemp -d)
trap 'rm -rf "$copy"' EXIT
trap 'exit 130' INT
trap 'exit 143' TERM
for name in pyvpn twisted setup.cfg setup.py LICENSE README.rst; do
    [ ! -e "$name" ] || cp -R "$name" "$copy/"
done
# --use-pep517: the only way for which pip brings the build tools along, whatever its age.
"$python" -m pip wheel --quiet --no-deps --use-pep517 --wheel-dir "$directory" "$@" "$copy"

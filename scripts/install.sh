#!/bin/bash
# Install what is missing: Debian packages of packages.txt, then .venv from the hashed requirements.lock.
set -euo pipefail
cd "$(dirname "$0")/.."

fail() { echo "install: $*" >&2; exit 1; }

install_packages() {
    local missing=() package
    if ! command -v dpkg-query >/dev/null; then
        for package in etcd sshd ssh-keygen; do
            PATH="$PATH:/usr/sbin" command -v "$package" >/dev/null || missing+=("$package")
        done
        [ ${#missing[@]} = 0 ] || echo "install: this is no Debian; the lab will miss: ${missing[*]}" >&2
        return
    fi
    while read -r package; do
        [[ -z $package || $package == \#* ]] && continue
        [[ $(dpkg-query -W -f '${db:Status-Status}' "$package" 2>/dev/null) == installed ]] || missing+=("$package")
    done <packages.txt
    [ ${#missing[@]} = 0 ] && return
    local run=()
    if [ "$(id -u)" != 0 ]; then
        sudo -n true 2>/dev/null || fail "please run: sudo apt-get install --no-install-recommends ${missing[*]}"
        run=(sudo -n)
    fi
    echo "Installing ${missing[*]}"
    local log
    log=$(mktemp)
    "${run[@]}" apt-get -qq update >"$log" 2>&1 || { cat "$log" >&2; fail "apt-get update failed"; }
    "${run[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends \
        "${missing[@]}" >"$log" 2>&1 || { tail -20 "$log" >&2; fail "apt-get install failed"; }
    rm -f "$log"
}

find_python() {
    local candidate
    for candidate in ${PYTHON:-} python3 python3.13 python3.12 python3.11 /usr/bin/python3; do
        if "$candidate" -c 'import sys, venv, ensurepip; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' \
            2>/dev/null; then
            echo "$candidate"
            return
        fi
    done
    fail "no Python 3.11 to 3.13 with venv found; install one, or name it: PYTHON=/path/to/python3 make install"
}

install_packages
if ! .venv/bin/python -c '' 2>/dev/null; then
    python=$(find_python)
    rm -rf .venv
    "$python" -m venv .venv
fi
echo "Installing requirements.lock into .venv"
uv=$(command -v uv || true)
if [ -z "$uv" ] || ! "$uv" --version >/dev/null 2>&1; then
    .venv/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r scripts/uv.lock
    uv=.venv/bin/uv
fi
"$uv" pip install -q --python .venv/bin/python --require-hashes -r requirements.lock
touch .venv/installed

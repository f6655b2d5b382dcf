#!/bin/bash
# A Docker Engine that answers, and Compose: started, or installed from Debian's packages, where that is allowed.
# Exit status 3: this machine cannot have one.
set -euo pipefail

fail() { echo "docker: $*" >&2; exit 3; }
answers() { docker info >/dev/null 2>&1; }
has_compose() { docker compose version >/dev/null 2>&1 || command -v docker-compose >/dev/null; }

if answers && has_compose; then
    exit 0
fi
[ "$(id -u)" = 0 ] || fail "Docker Engine with Compose is needed; please install docker.io and docker-compose, let this" \
    "user use it (group docker), or run this as root"
packages=()
command -v dockerd >/dev/null || answers || packages+=(docker.io iptables)
has_compose || packages+=(docker-compose)
if ((${#packages[@]})); then
    command -v apt-get >/dev/null || fail "please install Docker Engine and Compose"
    echo "Installing ${packages[*]}"
    log=$(mktemp)
    # an engine from elsewhere stays: Debian's would take its place
    { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-remove --no-install-recommends \
        "${packages[@]}"; } >"$log" 2>&1 || { tail -n 5 "$log" >&2; fail "apt-get failed"; }
    rm -f "$log"
fi
answers && exit 0
if [ -d /run/systemd/system ]; then
    systemctl start docker || fail "systemctl start docker failed; see journalctl -u docker"
else
    setsid nohup dockerd >/var/log/dockerd.log 2>&1 &
fi
for _ in $(seq 60); do
    answers && exit 0
    sleep 0.5
done
fail "Docker Engine was started and does not answer; see /var/log/dockerd.log"

#!/bin/bash
# A Docker Engine that answers, and Compose: started, or installed from Debian's packages, where that is allowed.
set -euo pipefail

fail() { echo "docker: $*" >&2; exit 1; }
answers() { docker info >/dev/null 2>&1; }
has_compose() { docker compose version >/dev/null 2>&1 || command -v docker-compose >/dev/null; }

if answers && has_compose; then
    exit 0
fi
[ "$(id -u)" = 0 ] || fail "Docker Engine with Compose is needed; please install docker.io and docker-compose, let this" \
    "user use it (group docker), or run this as root"
if ! command -v dockerd >/dev/null || ! has_compose; then
    command -v apt-get >/dev/null || fail "please install Docker Engine and Compose"
    echo "Installing docker.io docker-compose iptables debootstrap"
    log=$(mktemp)
    { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends \
        docker.io docker-compose iptables debootstrap; } >"$log" 2>&1 || { tail -n 5 "$log" >&2; fail "apt-get failed"; }
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

#!/bin/bash
# Make the image that everything in compose/Dockerfile begins with, from Debian's packages, where no image
# registry can be reached. Where one can, `docker build` pulls it and this is not needed.
# Exit status 3: it can be had here in neither way.
set -euo pipefail

image=debian:bookworm-slim
fail() { echo "compose-base: $*" >&2; exit 3; }

if docker image inspect "$image" >/dev/null 2>&1; then
    echo "$image is there"
    exit 0
fi
if timeout 60 docker pull -q "$image" >/dev/null 2>&1; then
    echo "$image is pulled"
    exit 0
fi
[ "$(id -u)" = 0 ] || fail "$image cannot be pulled, and only root can make it: sudo make compose-base"
if ! command -v debootstrap >/dev/null; then
    { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-remove debootstrap; } >/dev/null \
        || fail "please install debootstrap"
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
echo "Making $image from Debian's packages"
debootstrap --variant=minbase --include=ca-certificates bookworm "$folder" >"$folder.log" 2>&1 \
    || { tail -n 5 "$folder.log" >&2; fail "debootstrap failed; its log is $folder.log"; }
rm -f "$folder.log"
chroot "$folder" apt-get clean
rm -rf "$folder"/var/lib/apt/lists/* "$folder"/usr/share/doc/* "$folder"/usr/share/man/*
# whom this machine trusts: a company's proxy may sign what pip and apt download
cp /etc/ssl/certs/ca-certificates.crt "$folder/etc/ssl/certs/ca-certificates.crt"
tar -C "$folder" -c . | docker import - "$image" >/dev/null
echo "$image is made"

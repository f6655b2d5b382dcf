#!/bin/bash
# Have the image that everything in compose/Dockerfile begins with, bluegreen-base: Debian's own, pulled, or where no
# image registry can be reached one made from Debian's packages. REFRESH=1 has it anew, with Debian's latest mends.
# Exit status 3: it can be had here in neither way.
set -euo pipefail

suite=bookworm
pulled=debian:$suite-slim
image=bluegreen-base
fail() { echo "compose-base: $*" >&2; exit 3; }
there() { docker image inspect "$1" >/dev/null 2>&1; }

if there "$image" && [ -z "${REFRESH:-}" ]; then
    echo "$image is there"
    exit 0
fi
if timeout 60 docker pull -q "$pulled" >/dev/null 2>&1 || { there "$pulled" && [ -z "${REFRESH:-}" ]; }; then
    docker tag "$pulled" "$image"
    echo "$image is $pulled"
    exit 0
fi
[ "$(id -u)" = 0 ] || fail "$pulled cannot be pulled, and only root can make $image: sudo make compose-base"
if ! command -v debootstrap >/dev/null; then
    { apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-remove debootstrap; } >/dev/null \
        || fail "please install debootstrap"
fi
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
echo "Making $image from Debian's packages"
debootstrap --variant=minbase --include=ca-certificates "$suite" "$folder" >"$folder.log" 2>&1 \
    || { tail -n 5 "$folder.log" >&2; fail "debootstrap failed; its log is $folder.log"; }
rm -f "$folder.log"
# without these nothing that is built on it would get a mend
sources=$folder/etc/apt/sources.list
read -r kind mirror _ components <"$sources"
printf '%s\n' "$kind $mirror $suite-updates $components" \
    "$kind ${mirror%/debian*}/debian-security $suite-security $components" >"$sources.d/mends.list"
chroot "$folder" apt-get -qq -o APT::Sandbox::User=root update >/dev/null || {
    echo "compose-base: $mirror has no security updates beside it, so $image gets none" >&2
    rm "$sources.d/mends.list"
}
chroot "$folder" apt-get clean
rm -rf "$folder"/var/lib/apt/lists/* "$folder"/usr/share/doc/* "$folder"/usr/share/man/*
# whom this machine trusts: a company's proxy may sign what pip and apt download
if [ -d /usr/local/share/ca-certificates ]; then
    cp -r /usr/local/share/ca-certificates/. "$folder/usr/local/share/ca-certificates/"
fi
chroot "$folder" update-ca-certificates >/dev/null 2>&1
tar -C "$folder" -c . | docker import - "$image" >/dev/null
echo "$image is made"

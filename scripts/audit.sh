#!/bin/bash
# Look every locked package up in the database of known vulnerabilities; 1 when one is known or pip-audit fails. Where
# the database cannot be reached, or has no data, it says that the audit was not done, and why: no reason to test nothing.
set -euo pipefail
cd "$(dirname "$0")/.."

venv=.venv/audit
if [ ! -x $venv/bin/pip-audit ]; then
    .venv/bin/python -m venv $venv
    log=$(mktemp)
    $venv/bin/python -m pip install -q --disable-pip-version-check --require-hashes -r scripts/audit.lock \
        >"$log" 2>&1 || { tail -n 5 "$log" >&2; echo "audit: pip-audit could not be installed" >&2; exit 1; }
    rm -f "$log"
fi
# What requests and pip-audit say of a database that does not answer, and of nothing else: not of a bad certificate.
unreachable='^requests\.exceptions\.(ConnectionError|ProxyError|ConnectTimeout|ReadTimeout|ChunkedEncodingError): |'
unreachable+='^requests\.exceptions\.HTTPError: 5[0-9][0-9] |Could not connect to .* vulnerability feed'
status=0
for lock in requirements.lock lab/requirements.lock compose/requirements.lock scripts/audit.lock scripts/uv.lock; do
    out=$(mktemp)
    code=0
    said=$(timeout 300 $venv/bin/pip-audit --require-hashes --disable-pip --progress-spinner off -r $lock 2>&1 >"$out") || code=$?
    skipped=$(grep -c 'could not be audited' "$out" || true)
    if grep -q '^Found [0-9]* known vulnerab' <<<"$said"; then
        cat "$out"
        echo "audit: $lock: $(grep '^Found' <<<"$said")" >&2
        status=1
    elif [ "$skipped" != 0 ]; then
        echo "audit: $lock: NOT DONE for $skipped packages: the database answers, and has no data on them (404)"
    elif grep -q 'No known vulnerabilities found' <<<"$said"; then
        echo "audit: $lock: no known vulnerability"
    elif why=$(grep -Eom 1 "($unreachable).*" <<<"$said"); then
        echo "audit: $lock: NOT DONE: the database cannot be reached: ${why:0:300}"
    elif [ $code = 124 ]; then
        echo "audit: $lock: NOT DONE: the database did not answer within 300 s"
    else
        echo "audit: $lock: pip-audit ended with $code: $(tail -n 1 <<<"$said")" >&2
        status=1
    fi
    rm -f "$out"
done
exit $status

#!/bin/sh
# Writes requirements.lock: every package for every supported Python and platform, with hashes. Keeps the pins it finds unless given --upgrade.
set -eu
cd "$(dirname "$0")/.."

if ! command -v uv >/dev/null 2>&1; then
    printf '%s\n' "Error: make lock needs uv. Install it from https://docs.astral.sh/uv and try again." >&2
    exit 1
fi
export UV_SYSTEM_CERTS="${UV_SYSTEM_CERTS:-1}" UV_NATIVE_TLS="${UV_NATIVE_TLS:-1}"

new=$(mktemp)
trap 'rm -f "$new"' EXIT
if [ -f requirements.lock ]; then cp requirements.lock "$new"; fi # the pins to keep

# Extras stay in the names (gql[requests]==…): pip refuses a lock without them.
uv pip compile pyproject.toml --all-extras --group dev --quiet "$@" \
    --universal --python-version 3.11 --generate-hashes --no-strip-extras \
    --no-header --no-emit-index-url --no-emit-find-links --output-file "$new" >/dev/null

{
    printf '%s\n' "# Every package that Feature Assets runs, is tested and is built with, for Python 3.11 to 3.13."
    printf '%s\n' "# Written by \`make lock\` from pyproject.toml; do not edit."
    cat "$new"
} >requirements.lock
printf '%s\n' "requirements.lock: $(grep -c '^[A-Za-z0-9].*==' requirements.lock) packages."

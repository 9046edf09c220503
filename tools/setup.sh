#!/bin/sh
# Makes .venv: the locked packages, each checked against its hash, then this project in place. Run by make; safe to repeat and to interrupt.
#
# PYTHON names the interpreter to start from (default python3). uv does the work where it is on PATH, else the venv and pip of that Python.
set -eu
cd "$(dirname "$0")/.."

# Two runs in one folder wait for one another; where there is no flock they must not overlap.
if [ -z "${FEATURE_ASSETS_SETUP_LOCKED:-}" ] && command -v flock >/dev/null 2>&1; then
    FEATURE_ASSETS_SETUP_LOCKED=1 exec flock tools/setup.sh sh tools/setup.sh "$@"
fi

venv=.venv
stamp=$venv/.installed
supported="3.11, 3.12 or 3.13"

say() { printf '%s\n' "$*" >&2; }
fail() { say "Error: $1"; shift; for line in "$@"; do say "       $line"; done; exit 1; }
is_supported() { "$1" -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' >/dev/null 2>&1; }
version_of() { "$1" -c 'import platform; print(platform.python_version())'; }

wanted=$(cat requirements.lock pyproject.toml tools/setup.sh tools/build-constraints.txt | cksum)
if [ -f $stamp ] && [ "$(cat $stamp)" = "$wanted" ] && is_supported $venv/bin/python; then
    touch $stamp
    exit 0
fi

uv=$(command -v uv || true)
if [ -n "$uv" ] && ! "$uv" --version >/dev/null 2>&1; then uv=; fi
# Trust what the system trusts, as pip and curl do: behind a company's proxy uv would else refuse every download.
export UV_SYSTEM_CERTS="${UV_SYSTEM_CERTS:-1}" UV_NATIVE_TLS="${UV_NATIVE_TLS:-1}"

python=
for candidate in "${PYTHON:-python3}" python3.12 python3.13 python3.11 python3; do
    if is_supported "$candidate"; then python=$candidate; break; fi
done
if [ -z "$python" ] && [ -z "$uv" ]; then
    found=$("${PYTHON:-python3}" --version 2>/dev/null || echo "no ${PYTHON:-python3} on PATH")
    fail "Feature Assets needs Python $supported; found: $found." \
        "Install one and name it: make PYTHON=python3.12 …" \
        "or install uv (https://docs.astral.sh/uv), which brings its own."
fi

if ! is_supported $venv/bin/python; then
    rm -rf $venv
    if [ -n "$uv" ]; then
        # A bare name would be taken for a request, not for the interpreter that was just tried.
        if [ -n "$python" ]; then python=$("$python" -c 'import sys; print(sys.executable)'); else python=3.12; fi
        "$uv" venv --quiet --python "$python" $venv
    else
        "$python" -m venv $venv >/dev/null 2>&1 || {
            rm -rf $venv
            fail "$(version_of "$python") cannot make a virtual environment: its venv module is missing or broken." \
                "Debian, Ubuntu: apt install python3-venv. Anywhere: install uv (https://docs.astral.sh/uv)."
        }
    fi
fi

rm -f $stamp
started=$(date +%s)
count=$(grep -c '^[A-Za-z0-9].*==' requirements.lock)
if [ -n "$uv" ]; then with=uv; else with="pip; a minute or two"; fi
say "Installing up to $count packages into $venv (Python $(version_of $venv/bin/python), $with) …"
if [ -n "$uv" ]; then
    export VIRTUAL_ENV="$PWD/$venv" UV_BUILD_CONSTRAINT=tools/build-constraints.txt
    "$uv" pip install --quiet --compile-bytecode --require-hashes -r requirements.lock
    "$uv" pip install --quiet --no-deps --no-build-isolation --editable .
else
    export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_USE_PEP517=1
    # Up to pip 25.2 the plain constraint is what reaches a build, since then the other.
    PIP_CONSTRAINT=tools/build-constraints.txt PIP_BUILD_CONSTRAINT=tools/build-constraints.txt \
        $venv/bin/python -m pip install --quiet --require-hashes -r requirements.lock
    $venv/bin/python -m pip install --quiet --no-deps --no-build-isolation --editable .
fi
printf '%s\n' "$wanted" >$stamp
say "Installed in $(($(date +%s) - started)) s."

#!/usr/bin/env bash
# Make or update a virtual environment: tools/setup.sh VENV EXTRAS. Says what is missing when it cannot.
# Reads TORCH_SPEC (what to ask pip for) and TORCH_INDEX (an index to ask instead of pip's own; may be empty).
set -euo pipefail

venv=$1
extras=$2
unset PYTHONPATH

fail() {
    printf 'setup: %s\n' "$@" >&2
    exit 1
}

find_python() {
    local name
    for name in "${PYTHON:-}" python3.11 python3.12 python3.13 python3; do
        if [[ -n $name ]] && command -v "$name" >/dev/null &&
            "$name" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            echo "$name"
            return
        fi
    done
    fail "Python 3.11 or newer is missing. On Debian 12: apt-get install python3 python3-venv"
}

if ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
    python=$(find_python)
    "$python" -c 'import venv, ensurepip' 2>/dev/null ||
        fail "$python has no venv module with pip. On Debian: apt-get install python3-venv"
    echo "setup: creating $venv with $("$python" --version)"
    "$python" -m venv --clear "$venv"
fi

pip=("$venv/bin/python" -m pip --disable-pip-version-check)
install=("${pip[@]}" install --quiet --constraint tools/constraints.txt)

if ! "${pip[@]}" show --quiet torch 2>/dev/null; then
    echo "setup: installing ${TORCH_SPEC:=torch}${TORCH_INDEX:+ from $TORCH_INDEX} (the large one)"
    "${install[@]}" "$TORCH_SPEC" ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} ||
        fail "torch could not be installed: see pip's message above." \
            "Choose another build with TORCH_SPEC=... and TORCH_INDEX=... (README, 'Setting up')."
fi

echo "setup: installing inferd [$extras]"
"${install[@]}" --editable ".[$extras]" ||
    fail "the dependencies could not be installed: see pip's message above. A package index must be reachable."

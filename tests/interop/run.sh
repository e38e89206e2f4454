#!/usr/bin/env bash
# Queries the miner with the real Bittensor client.
#
#   tests/interop/run.sh [--sdk VERSION] [--miner PATH] [interop.py's options]
#
# Makes a virtual environment per SDK version once (through the user's own pip settings) and keeps it in
# ${IDIOLECT_INTEROP:-${XDG_CACHE_HOME:-~/.cache}/idiolect-interop}. Prints a table and "N passed, N failed".
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
sdk=10.5.0
miner="${CARGO_TARGET_DIR:-$here/../../target}/debug/idiolect-miner"
options=()
while [ $# -gt 0 ]; do
    case "$1" in
        --sdk) sdk="$2"; shift 2 ;;
        --miner) miner="$2"; shift 2 ;;
        *) options+=("$1"); shift ;;
    esac
done
if ! [ -x "$miner" ]; then
    echo "no miner at $miner: build it with 'cargo build --bin idiolect-miner' or name it with --miner" >&2
    exit 2
fi

store="${IDIOLECT_INTEROP:-${XDG_CACHE_HOME:-$HOME/.cache}/idiolect-interop}"
pins="$here/requirements/$sdk.txt"
wanted="bittensor==$sdk
$(cat "$here/requirements/common.txt")"
if [ -f "$pins" ]; then
    wanted="$wanted
$(cat "$pins")"
fi
venv="$store/bittensor-$sdk"
mkdir -p "$store"
(
    # Two runs at once must not build the same environment.
    if command -v flock >/dev/null; then flock 9; fi
    if ! [ -f "$venv/.wanted" ] || [ "$(cat "$venv/.wanted")" != "$wanted" ]; then
        echo "making a virtual environment with bittensor $sdk in $venv" >&2
        rm -rf "$venv"
        "${PYTHON:-python3}" -m venv "$venv"
        printf '%s\n' "$wanted" >"$store/wanted-$sdk.txt"
        "$venv/bin/python" -m pip install --quiet --disable-pip-version-check -r "$store/wanted-$sdk.txt"
        printf '%s\n' "$wanted" >"$venv/.wanted"
    fi
) 9>"$store/lock-$sdk"
exec "$venv/bin/python" "$here/interop.py" --sdk "$sdk" --miner "$miner" ${options[@]+"${options[@]}"}

# Sourced by demo.sh and test.sh: makes .venv in the checkout and installs medseg, once per state of pyproject.toml.
# Usage: source _env.sh EXTRA   (EXTRA may be ""; without it bash would hand on the caller's own arguments)
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
extra="$1"
state=$({ cat pyproject.toml; pwd -P; } | cksum | cut -d' ' -f1) # a checkout that was moved is installed again
python=.venv/bin/python
if [ ! -e ".venv/.installed-$extra-$state" ] && { [ -n "$extra" ] || [ ! -e ".venv/.installed-dev-$state" ]; }; then
    base="${PYTHON:-python3}"
    "$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "medseg needs Python 3.11 or newer; name one with PYTHON=" >&2; exit 2; }
    "$python" -m pip --version > /dev/null 2>&1 || "$base" -m venv --clear .venv
    echo "Installing into .venv (some minutes the first time) ..."
    # Bytecode is written when a module is first imported: compiling all of it takes a minute and most is never used.
    quiet=(-q --disable-pip-version-check --no-warn-script-location --no-compile)
    "$python" -m pip install "${quiet[@]}" --upgrade pip "setuptools>=77"
    "$python" -m pip install "${quiet[@]}" -e ".${extra:+[$extra]}"
    rm -f .venv/.installed-"$extra"-*
    touch ".venv/.installed-$extra-$state"
fi
export NO_ALBUMENTATIONS_UPDATE=1 PYTHONDONTWRITEBYTECODE= # else every process compiles what it imports

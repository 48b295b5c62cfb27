# Sourced by demo.sh and test.sh: makes .venv in the checkout and installs medseg, once per state of pyproject.toml.
# Usage: source _env.sh [extra]
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit 1
extra="${1:-}"
stamp=".venv/.installed-${extra:-plain}-$(cksum < pyproject.toml | cut -d' ' -f1)"
if [ ! -e "$stamp" ]; then
    python="${PYTHON:-python3}"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "medseg needs Python 3.11 or newer" >&2; exit 2; }
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    echo "Installing into .venv (some minutes the first time) ..."
    .venv/bin/python -m pip install -q --disable-pip-version-check --upgrade pip "setuptools>=77" wheel 2>&1 | { grep -v "^WARNING: Location" || true; }
    .venv/bin/python -m pip install -q --disable-pip-version-check -e ".${extra:+[$extra]}" 2>&1 | { grep -v "^WARNING: Location" || true; }
    .venv/bin/python -c "import medseg, torch, monai" || { echo "the installation failed" >&2; exit 4; }
    rm -f .venv/.installed-"${extra:-plain}"-*
    touch "$stamp"
fi
export NO_ALBUMENTATIONS_UPDATE=1

#!/bin/sh
# Lets espeak-ng speak words and digits, and writes the folders train and test and digits-train.npz and digits-test.npz
# here. Needs Debian's package espeak-ng, 1.51; other versions speak somewhat differently.
set -eu
cd "$(dirname "$0")"
. ../packages.sh
command -v espeak-ng >/dev/null || { echo "espeak-ng is missing: apt-get install espeak-ng" >&2; exit 1; }
python_environment
"$python" prepare.py

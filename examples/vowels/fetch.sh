#!/bin/sh
# Fetches Japanese Vowels from the Python package aeon and writes train.npz and test.npz into this folder.
set -eu
cd "$(dirname "$0")"
. ../packages.sh
python_package aeon 1.6.0 d05227086706f80111ac5fee8de4d5d3115bb3bcfd1c786c8629393055816409 wheel
python_environment
"$python" prepare.py "$package"

#!/bin/sh
# Fetches the open emoji sets Noto, Twemoji and OpenMoji from their npm packages and writes the folders train and test
# here.
set -eu
cd "$(dirname "$0")"
. ../packages.sh
. ../pictures/packages.sh
python_environment
"$python" prepare.py "$google" "$twitter" "$openmoji"

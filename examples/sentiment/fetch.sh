#!/bin/sh
# Fetches rated sentences of film reviews from the sources of the Python package vaderSentiment and writes train.jsonl and
# test.jsonl into this folder.
set -eu
cd "$(dirname "$0")"
. ../packages.sh
python_package vaderSentiment 3.3.2 5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9 source
python3 prepare.py "$package"

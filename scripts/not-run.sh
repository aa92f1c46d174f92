#!/bin/bash
# Tells what could not run on this host, after a test run that passed.
set -eu
file=$1
if [ -s "$file" ]; then
    echo
    echo "=== NOT RUN on this host ($(wc -l <"$file")) ==="
    sort -u "$file"
else
    echo
    echo "Every test ran on this host."
fi

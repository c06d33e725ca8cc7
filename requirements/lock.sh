#!/bin/sh
# Renew the hashed lock files with uv; only the names and hashes of packages go in, no addresses.
set -eu
cd "$(dirname "$0")/.."
for set in llamake test; do
    uv pip compile pyproject.toml requirements/build.in \
        $([ "$set" = llamake ] || echo --group "$set") \
        --universal --python-version 3.10 --generate-hashes --upgrade \
        --no-emit-index-url --no-emit-find-links --no-annotate \
        --custom-compile-command requirements/lock.sh \
        --output-file "requirements/$set.txt"
done

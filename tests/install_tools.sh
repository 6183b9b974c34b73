#!/bin/sh
# Install commands that tests and benchmarks start for themselves, each from the package of its name, or other packages,
# where they are missing and we may: install_tools.sh NAME... Services are not started: the tests run private ones.
# Where this cannot be done, what needs a missing one is skipped, loudly.
missing=
for name; do
    command -v "$name" >/dev/null || dpkg -s "$name" >/dev/null 2>&1 || missing="$missing $name"
done
[ -n "$missing" ] || exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null; then
    echo "not installed, and only root may do so:$missing" >&2
    exit 0
fi
export DEBIAN_FRONTEND=noninteractive
export RUNLEVEL=1 # invoke-rc.d starts nothing then
apt-get update -qq
# shellcheck disable=SC2086
apt-get install -y -qq --no-install-recommends $missing >&2 || echo "cannot be installed:$missing" >&2

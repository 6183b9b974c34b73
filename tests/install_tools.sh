#!/bin/sh
# Install commands that tests and benchmarks start for themselves, each from the package of its name, where they are
# missing and we may: install_tools.sh COMMAND... Services are not started: the tests run private ones. Where this
# cannot be done, what needs a missing command is skipped, loudly.
missing=
for command; do
    command -v "$command" >/dev/null || missing="$missing $command"
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

#!/bin/sh
# Install the brokers that the tests start for themselves, where they are missing and we may. Their services are not
# started: the tests run private ones. Where this cannot be done the tests of a missing broker are skipped, loudly.
missing=
command -v redis-server >/dev/null || missing="$missing redis-server"
command -v rabbitmq-server >/dev/null || missing="$missing rabbitmq-server"
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

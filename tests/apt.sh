#!/bin/sh
# System programs that tests need; installed when missing, and the run stops when they can't be.
set -eu
missing=""
for pair in strace:strace openssl:openssl; do
    command -v "${pair%%:*}" > /dev/null || missing="$missing ${pair##*:}"
done
[ -z "$missing" ] && exit 0
[ "$(id -u)" = 0 ] && sudo="" || sudo="sudo"
echo "Installing for the tests:$missing"
$sudo apt-get update -qq
DEBIAN_FRONTEND=noninteractive $sudo apt-get install -qq -y --no-install-recommends $missing > /dev/null

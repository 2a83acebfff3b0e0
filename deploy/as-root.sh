#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Runs a command as root: as it is, or through sudo; says so in one sentence where neither is possible.
set -eu
[ "$(id -u)" -ne 0 ] || exec "$@"
if ! command -v sudo > /dev/null; then
	echo "this needs root (it makes network namespaces): run it as root, or install sudo" >&2
	exit 2
fi
exec sudo -- "$@"

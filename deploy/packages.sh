#!/bin/bash
# SPDX-License-Identifier: Apache-2.0
# The Debian packages that a make target needs: packages.sh [--check] build|demo|fuzz|test
#
# Says which are missing and installs them, as root or through sudo. With NO_APT=1 it only lists them; with --check it
# says in one sentence what is missing. Either way it fails if something is.
set -euo pipefail
shopt -s inherit_errexit
here=$(cd "$(dirname "$0")" && pwd)

check=
if [ "${1:-}" = --check ]; then
	check=1
	shift
fi
target=${1:?"usage: packages.sh [--check] build|demo|fuzz|test"}

# One "what tells that it is there" and one package a line.
build_needs() {
	local python
	python=$("$here/python.sh")
	echo "command gcc"
	echo "headers libc6-dev"
	# The interpreter's own headers and venv module; only Debian's interpreter gets them from Debian.
	local prefix version
	read -r prefix version < <("$python" -c 'import sys; print(sys.base_prefix, "%d.%d" % sys.version_info[:2])')
	if ! "$python" -c 'import os, sysconfig, sys; sys.exit(not os.path.exists(os.path.join(sysconfig.get_path("include"), "Python.h")))'; then
		[ "$prefix" = /usr ] || fail "$python has no headers (Python.h): reinstall it with them, or set PYTHON to another"
		echo "missing python$version-dev"
	fi
	if ! "$python" -c 'import venv, ensurepip' 2> /dev/null; then
		[ "$prefix" = /usr ] || fail "$python cannot make virtual environments (no ensurepip): set PYTHON to another"
		echo "missing python$version-venv"
	fi
}

demo_needs() {
	build_needs
	printf '%s\n' "command ip iproute2" "command nft nftables" "command nginx nginx-light" "command curl" "command wrk" \
		"command ethtool" "command setpriv util-linux" "command bird bird2"
}

fuzz_needs() {
	build_needs
	printf '%s\n' "command clang" "runtime libclang-rt-dev"
}

test_needs() {
	demo_needs
	fuzz_needs
	printf '%s\n' "command ping iputils-ping" "command tcpdump" "program /usr/lib/frr/bgpd frr" \
		"command systemd-analyze systemd" "command mmdebstrap" "command chromium" "command prometheus" \
		"command aarch64-linux-gnu-gcc gcc-aarch64-linux-gnu" "command qemu-aarch64-static qemu-user-static" \
		"file /usr/aarch64-linux-gnu/include/stdio.h libc6-dev-arm64-cross"
}

fail() {
	echo "$*" >&2
	exit 2
}

# Debian names the sanitizer and fuzzer runtimes after clang's version.
clang_runtime() {
	local major
	major=$(clang -dumpversion 2> /dev/null || apt-cache depends clang 2> /dev/null | sed -n 's/.*clang-\([0-9]*\)$/\1/p')
	echo "libclang-rt-${major%%.*}-dev"
}

has_clang_runtime() {
	echo 'int LLVMFuzzerTestOneInput(const char *d, unsigned long n) { return d && n ? 0 : 0; }' |
		clang -fsanitize=fuzzer,address -x c - -o /dev/null 2> /dev/null
}

has_headers() {
	printf '#include <stdio.h>\n#include <linux/if_packet.h>\n' | gcc -E - > /dev/null 2>&1
}

# Reads needs, prints the packages that are missing.
missing() {
	local kind words package
	while read -r kind words; do
		package=${words##* }
		case $kind in
		command) command -v "${words%% *}" > /dev/null || echo "$package" ;;
		program) [ -x "${words%% *}" ] || echo "$package" ;;
		file) [ -e "${words%% *}" ] || echo "$package" ;;
		headers) has_headers || echo "$package" ;;
		runtime) has_clang_runtime || clang_runtime ;;
		missing) echo "$package" ;;
		esac
	done
}

PATH=$PATH:/usr/sbin:/sbin # where Debian keeps nft, ethtool and nginx
needs=$("${target}_needs")
mapfile -t packages < <(missing <<< "$needs" | sort -u)
[ ${#packages[@]} -gt 0 ] || exit 0

list=${packages[*]}
if [ -n "$check" ]; then
	fail "make $target needs these Debian packages: apt-get install $list"
fi
command -v apt-get > /dev/null || fail "make $target needs what Debian calls: $list. This is no Debian: install them your way"
if [ -n "${NO_APT:-}" ]; then
	fail "make $target would install these Debian packages: $list"
fi
echo "make $target installs these Debian packages: $list"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
quietly() {
	"$here/as-root.sh" env DEBIAN_FRONTEND=noninteractive "$@" > "$log" 2>&1 && return
	tail -20 "$log" >&2
	fail "that failed, see above; install by hand: apt-get install $list"
}
# A freshly installed nginx would start and take port 80 of this machine; the labs run their own, in namespaces.
if [ ! -e /usr/sbin/policy-rc.d ]; then
	"$here/as-root.sh" sh -c 'printf "#!/bin/sh\nexit 101\n" > /usr/sbin/policy-rc.d && chmod +x /usr/sbin/policy-rc.d'
	trap 'rm -f "$log"; "$here/as-root.sh" rm -f /usr/sbin/policy-rc.d' EXIT
fi
quietly apt-get update
quietly apt-get install --yes --no-install-recommends "${packages[@]}"

#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# Prints the newest suitable Python, or says in one sentence what is missing. PYTHON=... overrides the choice.
set -u
suits='import sys; sys.exit(sys.version_info < (3, 11))'
for name in ${PYTHON:-python3 python3.13 python3.12 python3.11}; do
	path=$(command -v "$name" 2>/dev/null) || continue
	if "$path" -c "$suits" 2>/dev/null; then
		"$path" -c "import sys; print(sys.executable)"
		exit 0
	fi
done
echo "vipmux needs Python 3.11 or newer: install it (Debian: python3), or name one with PYTHON=/path/to/python3" >&2
exit 2

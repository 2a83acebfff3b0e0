# SPDX-License-Identifier: Apache-2.0
"""Where benchmarks play: namespaces, daemons, routers, and what is said of the machine."""

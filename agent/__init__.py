# SPDX-License-Identifier: Apache-2.0
"""The host agent: takes packets out of their tunnels, translates ports, and owns the VIPs on a backend's host."""

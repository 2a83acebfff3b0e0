# SPDX-License-Identifier: Apache-2.0
"""What a packet filter does to a packet: nftables and iptables. Pure."""

# SPDX-License-Identifier: Apache-2.0
"""What a host needs for its services: NAT, VIPs, sysctls, filters. Pure."""

# SPDX-License-Identifier: Apache-2.0
"""The MUX's own probes, through the tunnel."""

# SPDX-License-Identifier: Apache-2.0
"""Nodes: their connections, what they say, what they are asked."""

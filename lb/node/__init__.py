# SPDX-License-Identifier: Apache-2.0
"""A node's side of the node stream, and what both sides share."""

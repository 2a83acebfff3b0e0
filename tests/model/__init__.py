# SPDX-License-Identifier: Apache-2.0
"""Slow, obvious models of what the data plane does, written from the papers and RFCs that it follows.

Tests compare the compiled code with them. Nothing here is written after the C, and nothing here is fast: where a
document gives a formula, the formula stands here as it does there.
"""

# SPDX-License-Identifier: Apache-2.0
"""The tables of ``lb get``: columns, which rows, and those that follow what changes."""

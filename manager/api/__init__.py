# SPDX-License-Identifier: Apache-2.0
"""The HTTP API: its routes, its rows, its description."""

# SPDX-License-Identifier: Apache-2.0
"""Prometheus metrics: the figures, and the server that hands them out."""

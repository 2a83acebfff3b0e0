# SPDX-License-Identifier: Apache-2.0
"""Fuzz targets (C, driven by libFuzzer), and what they start from."""

# SPDX-License-Identifier: Apache-2.0
"""Tries the way to each backend, and says what the answers mean."""

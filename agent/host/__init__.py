# SPDX-License-Identifier: Apache-2.0
"""The host's kernel: one interface, the real one, and one in memory for tests."""

# SPDX-License-Identifier: Apache-2.0
"""``lb replay``: the real data plane over a capture."""

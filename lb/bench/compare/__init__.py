# SPDX-License-Identifier: Apache-2.0
"""``lb bench peers``: vipmux beside what it would replace."""

# SPDX-License-Identifier: Apache-2.0
"""What outlives the manager: the store, and what is written to it."""

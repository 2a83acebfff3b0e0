# SPDX-License-Identifier: Apache-2.0
"""The manager's heart: writer, planner, and what passes between them."""

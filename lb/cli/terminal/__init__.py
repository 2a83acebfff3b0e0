# SPDX-License-Identifier: Apache-2.0
"""What a terminal shows: tables, colours, times, and pictures that are drawn again."""

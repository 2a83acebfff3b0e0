# SPDX-License-Identifier: Apache-2.0
"""The daemon as a process: its rights, priority and memory, and the faults that it counts of itself."""

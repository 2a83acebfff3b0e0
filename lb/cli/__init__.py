# SPDX-License-Identifier: Apache-2.0
"""The operator's program ``lb``; one file for each subcommand."""

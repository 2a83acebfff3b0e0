# SPDX-License-Identifier: Apache-2.0
"""Files of a daemon: its state directory, private files, whether the last run ended cleanly."""

# SPDX-License-Identifier: Apache-2.0
"""What all daemons share in living on: supervision of their tasks, and what they count of themselves."""

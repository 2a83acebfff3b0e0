# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a machine, judged from what was seen of it."""

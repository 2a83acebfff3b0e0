# SPDX-License-Identifier: Apache-2.0
"""From what should be and what is to what every node should have. Pure."""

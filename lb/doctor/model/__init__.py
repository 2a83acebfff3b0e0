# SPDX-License-Identifier: Apache-2.0
"""What is seen and what is found, as values."""

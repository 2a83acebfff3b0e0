# SPDX-License-Identifier: Apache-2.0
"""Configuration files: text in, checked values out, and back."""

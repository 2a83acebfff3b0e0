# SPDX-License-Identifier: Apache-2.0
"""Looks at this machine; judges nothing."""

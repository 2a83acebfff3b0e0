# SPDX-License-Identifier: Apache-2.0
"""What a daemon has put into the kernel is watched, and put back."""

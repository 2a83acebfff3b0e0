# SPDX-License-Identifier: Apache-2.0
"""What operators want, and changes of it. Pure."""

# SPDX-License-Identifier: Apache-2.0
"""Who a command asks: the manager, or the daemon of this machine."""

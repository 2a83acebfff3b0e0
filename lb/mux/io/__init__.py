# SPDX-License-Identifier: Apache-2.0
"""Where packets come in and go out, and what keeps the kernel away from them: packet, TUN, AF_XDP."""

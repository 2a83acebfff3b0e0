# SPDX-License-Identifier: Apache-2.0
"""Who is on the other end, and what strangers may cost: the CA, tokens, joining, listening sockets."""

# SPDX-License-Identifier: Apache-2.0
"""Tables of cases: a packet in, what becomes of it, and the packets out.

:data:`tests.packets.rows.ROWS` is all of them. :mod:`tests.packets.test_rows` runs them through memory, and through
real interfaces where it may; others that have an I/O of their own can import the rows and do the same.
"""

# SPDX-License-Identifier: Apache-2.0
"""Tables as text: how values read, and how columns are laid out. What rows there are: :mod:`lb.rows`."""

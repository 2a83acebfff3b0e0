# SPDX-License-Identifier: Apache-2.0
"""The web page: its server, what it shows, who is logged in; its files are in ``static``."""

# SPDX-License-Identifier: Apache-2.0
"""From services to the tables that packets read: numbers, Maglev tables, snapshots."""

# SPDX-License-Identifier: Apache-2.0
"""What is seen of the fleet: announcements, rates, drains, clocks, whether clients get through."""

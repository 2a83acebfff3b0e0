# SPDX-License-Identifier: Apache-2.0
"""vipmux: the MUX, the operator's tools, and what MUX, host agent and manager share."""

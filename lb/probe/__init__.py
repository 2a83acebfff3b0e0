# SPDX-License-Identifier: Apache-2.0
"""Health probes, as agents and MUXes share them: what to ask (checkers), when (scheduler), what follows (state)."""

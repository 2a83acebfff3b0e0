# SPDX-License-Identifier: Apache-2.0
"""The workers: what is published to them, and how they do: heartbeat, flows, overload."""

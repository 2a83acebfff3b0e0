# SPDX-License-Identifier: Apache-2.0
"""The control plane: desired state in, what every node should have out."""

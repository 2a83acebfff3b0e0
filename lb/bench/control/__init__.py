# SPDX-License-Identifier: Apache-2.0
"""``lb bench control``: the control plane at full size."""

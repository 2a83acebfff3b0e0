# SPDX-License-Identifier: Apache-2.0
"""Tables as text: values, layout, and what the manager's tables look like. Starts quickly."""

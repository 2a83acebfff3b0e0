# SPDX-License-Identifier: Apache-2.0
"""Next hops: routes, links and neighbours, and where a frame for a backend goes."""

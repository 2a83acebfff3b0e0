# SPDX-License-Identifier: Apache-2.0
"""The MUX daemon, ``lb-mux``: what a machine must provide around the C workers, and what an operator sees of them.

Begin reading at :mod:`lb.mux.daemon`. Decisions are pure functions in ``nexthops``, ``mode``, ``reload``, ``isolation``
(the nftables text), ``tun`` (the routes) and ``status``; ``netlink``, ``hop_watch`` and ``engine`` act.
"""

# SPDX-License-Identifier: Apache-2.0
"""VIPs announced by BGP: ``lb-mux`` owns an ExaBGP process beside it, and this package owns that ownership.

    routes, config, session, policy   pure: what to say, to whom, and what an answer means
    speaker                           keeps what is announced equal to what is wanted
    sidecar                           starts ExaBGP, feeds it, and ends it before it can announce for the dead
    launch, helper                    run on the other side: how ExaBGP is started, and the process that it starts
    selftest                          proves a table before anybody is told of it

Used by :mod:`lb.mux.announcer` alone.
"""

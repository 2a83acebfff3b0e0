# SPDX-License-Identifier: Apache-2.0
"""``lb doctor``: finds what is wrong with a machine or a fleet, and says what to do.

Ask :func:`lb.doctor.examine.machine` (a MUX, a host or a manager, by its file) or :func:`lb.doctor.fleet.examine` (what
a manager knows); both return :class:`~lb.doctor.model.findings.Finding`. Inside, looking and judging are apart:

    collect, path_tests    read the machine and try its ways; no judgement
    model                  what was seen, as values, and what is found
    checks, fleet          pure functions from the one to the other, a table test each

Nothing here changes the machine, except packets that ask. What cannot be looked at is a finding too, of severity
``unknown``: nothing passes for fine that was not seen.
"""

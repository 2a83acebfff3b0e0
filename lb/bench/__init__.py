# SPDX-License-Identifier: Apache-2.0
"""The benchmarks of ``lb bench``:

    pipeline, wear         packets in memory: ns each; what hours of connections do to the flow table
    packet_rate, latency   a real lb-mux in network namespaces: packets per second, and what it adds to a lone request
    control                a manager with MUXes and agents (control_fleet, control_agents, control_router: its stage)
    stage, machine, echo   what they have in common: namespaces and daemons, words about the machine, a server

Nothing of the product knows of them but the command itself (lb.cli.commands.bench).
"""

"""Mutants: the core with one bug each, which the simulation must find.

Each mutant swaps one function object of the core, in a process of its own that imported the core
afresh, and lives through a few stories until an invariant is broken:

    python -m tests.simulation.mutants                  # all of them, as a table
    python -m tests.simulation.mutants ack-never-sent   # one, as JSON

No other test changes the product. Described in docs/simulation.md.
"""

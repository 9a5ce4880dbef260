"""A simulated OpenSIPS 3.6 or 4.0: its clusterer and BIN transport as measured and as written down.

It shares nothing with the gateway, neither codec nor link machine, so that the two can disagree,
and is as credulous and as fragile as the original. Why, and how it is held to the real one:
docs/decisions/0015-a-simulated-opensips-of-its-own.md. `gateway` and `cluster` put it together with
nodes of ours.
"""

"""A simulated OpenSIPS 3.6 or 4.0: its clusterer and BIN transport as measured and as written down.

Made from the description of the real program alone (docs/gateway-opensips.md, "What your OpenSIPS
does"): it shares nothing with the gateway, neither codec nor link machine, so that the two can
disagree. It is as credulous and as fragile as the original.
"""

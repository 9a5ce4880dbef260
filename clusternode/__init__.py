"""A peer-to-peer cluster agent: membership, channels, requests and scripted event routes.

A routes file imports `from clusternode.routes import …`; everything else is reached through the
command `clusternode`. Nothing is imported here, so that every command starts fast.
"""

__version__ = "0.1.0"

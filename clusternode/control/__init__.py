"""The control socket: JSON-RPC 2.0 calls, declared once for server, client and docs."""

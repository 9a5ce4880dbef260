"""Bytes to frames to messages and back: the protocol of docs/protocol.md."""

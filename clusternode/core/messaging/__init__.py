"""Streams, deliveries and requests: how messages reach each node once and report back."""

"""Bridges: rules that relay messages, requests and events between clusters, gateways and Kafka.

Specified in docs/one-bus-from-three.md; why it is so: docs/decisions/0016-one-bridge.md.
"""

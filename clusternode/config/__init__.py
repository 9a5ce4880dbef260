"""TOML and environment → frozen settings objects, validated with the path of the bad value."""

from __future__ import annotations

from clusternode.config.loader import load_settings
from clusternode.config.settings import (
    AgentSettings,
    ChannelSection,
    ClusterSection,
    ExecRoute,
    RoutesSection,
    SubscribeSection,
    TlsSection,
)

__all__ = [
    "AgentSettings",
    "ChannelSection",
    "ClusterSection",
    "ExecRoute",
    "RoutesSection",
    "SubscribeSection",
    "TlsSection",
    "load_settings",
]

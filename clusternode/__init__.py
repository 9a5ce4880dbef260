"""A peer-to-peer cluster agent."""

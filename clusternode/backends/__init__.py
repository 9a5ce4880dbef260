"""Back ends of events, chosen by the scheme of a URI. Specified in docs/events.md."""

"""A full member of a Kamailio DMQ bus. Specified in docs/gateway-kamailio.md."""

"""Who is in the cluster and how well they are: records, health, pings and discovery."""

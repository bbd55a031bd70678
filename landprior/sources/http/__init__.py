"""The one way to the network: the client, what answers say, whole files, remote rasters by ranges, the cache."""

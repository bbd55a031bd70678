"""All network access: the client, responses, downloads of whole files, remote rasters by ranges, and the cache."""

"""Maps and polygons: areas per polygon."""

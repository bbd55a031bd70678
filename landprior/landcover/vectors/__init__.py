"""Maps and polygons: maps as polygons, areas per polygon."""

"""The workspace: a folder of places and tiles, with the fetched layers and the results made from them."""

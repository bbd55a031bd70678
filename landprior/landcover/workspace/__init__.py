"""The workspace: a folder of places and tiles, what is fetched into it and what is made from it."""

"""NAIP imagery: found in a catalogue or a folder, chosen, given the grid of a tile, warped onto it."""

"""NAIP imagery: searching a catalogue or folder, choosing images, laying out tiles, and warping."""

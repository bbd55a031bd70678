"""Models of a place: images and priors by windows, tiles, settings, the trainer, its verdict, the model file."""

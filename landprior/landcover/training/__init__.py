"""Training: windowed reading of images and priors, tiles, settings, the trainer, its verdict and the model file."""

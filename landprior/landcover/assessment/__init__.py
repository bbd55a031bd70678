"""Map quality: scores, sample points, estimates of areas and accuracy, and figures."""

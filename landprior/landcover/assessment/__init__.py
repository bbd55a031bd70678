"""How good a map is: scores, samples of points, estimates of areas and accuracy, figures."""

"""The main job: build priors, train on tiles, predict, evaluate, run the whole chain, and make a synthetic scene."""

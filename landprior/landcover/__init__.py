"""The main job: priors, tile training, prediction, evaluation, the whole chain, the synthetic scene."""

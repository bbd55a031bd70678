"""The core: implicit-posterior losses, the posterior, networks and the training loop; independent of maps.

The mathematics is that of "Resolving Label Uncertainty with Implicit Posterior Models" (Rolf, Malkin,
Graikos, Jojic, Robinson, Jojic; UAI 2022), cited as [R eq. n]. Everything works in log space on tensors
whose axis 1 is the class: (N, C) or (N, C, H, W).
"""

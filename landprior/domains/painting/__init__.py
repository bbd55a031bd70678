"""Pictures with a prior drawn by hand [R Figure 1, F.4]."""

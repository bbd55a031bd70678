"""Small labelled images and their training, the common base of partial labels and ranks."""

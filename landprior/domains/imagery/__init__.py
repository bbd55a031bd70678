"""Small labelled images, and what the trainings on them share: partial labels and ranks stand on it."""

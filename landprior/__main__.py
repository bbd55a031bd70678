"""``python -m landprior`` is ``landprior``."""

from landprior.cli import main

if __name__ == "__main__":
    main(prog_name="landprior")

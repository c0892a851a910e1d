"""What the notebooks share. Each module does one thing; import the one you need: ``from helpers import data``."""

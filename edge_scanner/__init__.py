"""Edge Scanner: a whole-slide microscope scanner daemon for small computers."""

__version__ = "0.1.0"

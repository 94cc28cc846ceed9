"""OpenIODM: a self-hosted OTA server (see README.md for the way of the data)."""

__version__ = "0.1.0"

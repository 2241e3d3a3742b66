"""The version of cascli, which the build also reads from here."""

__version__ = "0.1.0"

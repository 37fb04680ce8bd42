"""The command line, ``./hyperflow``."""

"""Tests of the command line, the launcher and the data directory."""

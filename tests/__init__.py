"""Tests of Australis: each folder is one harness, runnable by pytest and (where it makes sense) by `python -m`."""

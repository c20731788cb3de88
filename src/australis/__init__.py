"""Australis: a distributed SQL database shaped like Amazon Aurora DSQL, with PostgreSQL as its query processor."""

__version__ = "0.1.0"

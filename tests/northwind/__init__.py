"""Northwind, a real dump: loaded unmodified with psql, queried, the answers equal to stock PostgreSQL's."""

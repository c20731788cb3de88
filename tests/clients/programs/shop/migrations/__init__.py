"""Migrations of the shop, in order."""

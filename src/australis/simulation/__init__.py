"""Histories of transactions and what isolation levels allow in them."""

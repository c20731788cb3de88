"""Does anything grow under a load that does not? See `__main__` (acceptance line A8)."""

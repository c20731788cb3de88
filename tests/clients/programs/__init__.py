"""The programs: each takes a connection URL and prints what it saw, one line per fact, the same on every server."""

"""Bad input and bad surroundings: a one-line cause and what to do each, nothing damaged (acceptance line A10)."""

"""Several query processors of one cluster."""

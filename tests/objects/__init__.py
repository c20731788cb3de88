"""Object stores: the contract of both drivers, faults of S3, and snapshots in them."""

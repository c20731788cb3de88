"""What services say to each other: messages and framing, one definition (docs/formats.md §6)."""

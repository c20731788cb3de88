"""SQL differential suite: the same statements on two servers, every observable part of the answers compared."""

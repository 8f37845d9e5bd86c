"""Block reconstruction with Lightning: what is learned, and the walk from block to block."""

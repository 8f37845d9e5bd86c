"""Block reconstruction with Lightning: what is learned, and the order of the blocks."""

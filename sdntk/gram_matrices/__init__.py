"""Gram matrices: X -> G in tiles, in memory or on disk, and G times vectors."""

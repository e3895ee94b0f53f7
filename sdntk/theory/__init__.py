"""The theory in the eigenbasis: pure functions of eigenvalues d and rotated labels z."""

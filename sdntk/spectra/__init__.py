"""Spectra: eigenvalues d and the map y -> z into their basis and back, by several methods."""

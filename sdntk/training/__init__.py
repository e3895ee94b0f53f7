"""Training of networks: losses, optimisers, ensembles, one round, and the chain of rounds."""

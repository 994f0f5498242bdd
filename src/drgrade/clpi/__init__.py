"""The command line and the weights that were released with CLPI."""

"""The machine read as a probability distribution."""

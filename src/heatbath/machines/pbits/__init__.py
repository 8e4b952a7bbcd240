"""Networks of probabilistic bits."""

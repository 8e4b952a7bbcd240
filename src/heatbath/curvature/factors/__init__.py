"""From rows of layers to Kronecker factors: sums, how they are held, and how they are averaged over steps and processes."""

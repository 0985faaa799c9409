"""Ways of perturbing what a training step sees, one file each; found by name."""

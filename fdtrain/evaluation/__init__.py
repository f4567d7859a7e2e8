"""What a trained model is worth: likelihoods and samples. Knows nothing of the run that made it."""

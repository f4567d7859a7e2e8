"""Evaluation of a trained model: likelihoods, samples and their distances. It knows nothing of the training."""

"""Predictions of a trained network: of the test set, and of a user's own images."""

"""The processes of a run: starting ranks, supervising them, and what they exchange outside of the training step."""

"""What makes a step: optimizers, learning-rate schedules, losses, precision, averaged weights."""

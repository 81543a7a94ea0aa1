"""Studies: one recipe trained with other values of some keys and with several seeds, and what that tells of the keys."""

"""The training loop, its evaluation and its checkpoints, and the command line around them."""

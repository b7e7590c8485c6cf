"""Fitting networks: the staged loop, checkpoints, evaluation."""

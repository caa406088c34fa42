"""Training: the objective, the loop, the optimiser, the schedule, the metrics and the checkpoints."""

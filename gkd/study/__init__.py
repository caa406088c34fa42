"""Fair comparisons of training methods: plan the runs, start them, choose settings, score, report."""

"""Loop glue: Lightning modules, optimisers, schedules, checkpoints. No mathematics."""

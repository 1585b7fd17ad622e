"""The training of a run: plan, processes, launch of the trainer, faults."""

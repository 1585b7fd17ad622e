"""What a run leaves behind: its directory, its tracking, its checkpoints and its report."""

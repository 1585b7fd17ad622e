"""Studies that carry out a paper: its runs, its numbers beside ours, its figures. One paper per file."""

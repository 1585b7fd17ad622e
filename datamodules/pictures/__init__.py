"""Picture formats: what each file says of itself in its header, and its pixels as they are stored."""

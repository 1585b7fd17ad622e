"""Plain torch networks, one file per family; nothing here imports lightning."""

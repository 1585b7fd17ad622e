"""What ``make bench`` runs: Mirage against plain code in the same run, as ratios."""

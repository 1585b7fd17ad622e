"""What a data set knows of its images: patients, splits, duplicates, versions."""

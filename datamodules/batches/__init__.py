"""From records to batches: samplers, transforms, augmentation."""

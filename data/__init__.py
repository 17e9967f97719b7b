"""Films, manifests, splits, geometry, augmentation. Knows no model."""

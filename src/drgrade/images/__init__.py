"""From a photograph to a training image: geometry, crop, store, augmentation."""

"""From a photograph to a training picture: geometry, crop, store, augmentation."""

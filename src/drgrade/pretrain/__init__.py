"""Self-supervised pretraining: each method is one module that registers under its own name."""

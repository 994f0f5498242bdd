"""Start weights in packages of the extra ``weights``, converted to files in ``data/weights``."""

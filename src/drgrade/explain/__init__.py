"""Heat maps in original pixels, their overlays, and their scores against lesion masks."""

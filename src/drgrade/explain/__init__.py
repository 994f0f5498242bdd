"""Heat maps in original pixels, their overlays on photographs, and their scores against lesion masks."""

"""Grade new photographs with trained models: on the command line, in Python, and behind the web page."""

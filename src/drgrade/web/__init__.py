"""The web page of ``drgrade demo``: one photograph in, its grade, probabilities, heat map and lesions out."""

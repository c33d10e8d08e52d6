"""Training data from footage and pictures: cut, judged, described, and packed into shards. No torch here."""

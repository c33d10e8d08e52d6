"""Public weight files: what a file is, how big its networks are, its keys in our names; a pack of them."""

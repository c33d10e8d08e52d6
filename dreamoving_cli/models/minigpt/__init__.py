"""MiniGPT-v2, the captioner: pictures and words in, words with boxes out."""

"""What a frame shows, in words with boxes; and which of the words a render may use."""

"""Images with labels, read from where users keep them; knows no method."""

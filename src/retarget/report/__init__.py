"""Results to one self-contained HTML page and Markdown; knows no method."""

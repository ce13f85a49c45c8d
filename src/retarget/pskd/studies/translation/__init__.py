"""Machine translation: a small Transformer whose words take softened targets."""

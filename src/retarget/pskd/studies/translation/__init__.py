"""The translation study: a small Transformer trained with softened targets for every token."""

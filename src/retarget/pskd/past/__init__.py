"""Where PS-KD's past predictions come from: rows, the table, its files, the previous model, the exchange, the state."""

"""The image study: the paper's question, questions that it leaves open, and PS-KD among its peers."""

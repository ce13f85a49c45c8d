"""Image classification: the paper's own question, questions that it leaves open, and PS-KD among its peers."""

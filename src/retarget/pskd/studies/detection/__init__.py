"""The detection study: a backbone trained with PS-KD, or PS-KD on the detector's own head."""

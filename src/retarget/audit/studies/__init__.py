"""The zoo: clean and trojaned models that every detector is judged on."""

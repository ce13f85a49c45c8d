# How many problems of two published sets keep a prefix that does not state the answer, and whether a prefix leaks it.
# Needs: a clone with pip install '.[rl]', GSM8K's train.jsonl in gsm8k/ and MATH's train.jsonl.gz in math/.
# Recorded by: python tools/record_commands.py pope-prefix-leaks examples/pope_prefix_leaks.sh
python tools/check_prefixes.py gsm8k/train.jsonl math/train.jsonl.gz

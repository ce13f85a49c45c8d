# A small language model that was trained here on GSM8K: mined, given prefixes, and trained by RL with and without them.
# Needs: a clone with pip install '.[rl]', GSM8K's train.jsonl in gsm8k/, and an hour for the model (other rows):
#   head -n 6500 gsm8k/train.jsonl > gsm8k/seen.jsonl
#   python examples/pope_small_language_model.py gsm8k/seen.jsonl models/small --epochs 6 --bf16
# Recorded by: python tools/record_commands.py pope-small-language-model examples/pope_small_language_model.sh
sed -n '6501,6692w gsm8k/rest.jsonl' gsm8k/train.jsonl
sed -n '6693,6756w gsm8k/new.jsonl' gsm8k/train.jsonl
retarget pope mine gsm8k/rest.jsonl --model models/small --no-chat --templates models/small/templates --max-tokens 200 \
    --k 32 --out small
retarget pope search small/hard.jsonl --model models/small --no-chat --templates models/small/templates \
    --max-tokens 200 --cuts 4 --cap 0.75 --k 16 --out small
retarget pope mix small/hard.jsonl small/prefixes.jsonl --found-only --no-chat --templates models/small/templates \
    --prompts-per-batch 10 --out small/pope.parquet
retarget pope mix small/hard.jsonl small/prefixes.jsonl --found-only --no-chat --templates models/small/templates \
    --prompts-per-batch 10 --ratio 0 --out small/plain.parquet
retarget pope train small/pope.parquet --model models/small --cycles 30 --out small/pope \
    --set prompts_per_batch=10 rollouts=16 micro_batch=32 max_completion_length=200 lr=1e-4 entropy_bonus=0.0
retarget pope train small/plain.parquet --model models/small --cycles 30 --out small/plain \
    --set prompts_per_batch=10 rollouts=16 micro_batch=32 max_completion_length=200 lr=1e-4 entropy_bonus=0.0
python -c "import json; ids = {r['id'] for r in map(json.loads, open('small/prefixes.jsonl')) if r['status'] == 'found'}; open('small/trained.jsonl', 'w').writelines(r for r in open('small/hard.jsonl') if json.loads(r)['id'] in ids)"
retarget pope evaluate small/trained.jsonl --model models/small --no-chat --templates models/small/templates \
    --max-tokens 200 --samples 32 --seed 1 --out small/base-trained
retarget pope evaluate small/trained.jsonl --model small/pope --no-chat --templates models/small/templates \
    --max-tokens 200 --samples 32 --seed 1 --out small/pope-trained
retarget pope evaluate small/trained.jsonl --model small/plain --no-chat --templates models/small/templates \
    --max-tokens 200 --samples 32 --seed 1 --out small/plain-trained
retarget pope evaluate gsm8k/new.jsonl --model models/small --no-chat --templates models/small/templates \
    --max-tokens 200 --samples 16 --seed 1 --out small/base-new
retarget pope evaluate gsm8k/new.jsonl --model small/pope --no-chat --templates models/small/templates \
    --max-tokens 200 --samples 16 --seed 1 --out small/pope-new
retarget pope evaluate gsm8k/new.jsonl --model small/plain --no-chat --templates models/small/templates \
    --max-tokens 200 --samples 16 --seed 1 --out small/plain-new

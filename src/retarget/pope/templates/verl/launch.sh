#!/usr/bin/env bash
# Train with verl 0.9 and POPE's settings: bash THIS_FILE MODEL [further settings]
set -euo pipefail
here="$(cd "$(dirname "$0")" && pwd)"
model="$1"
shift
# data.shuffle=False keeps the order of the rows, so that both prompts of a problem are in one batch. verl leaves out an
# incomplete last batch, so without shuffling the number of rows must be a multiple of data.train_batch_size. verl raises an
# error for an unknown data source, so the reward file is needed. It must be set under `reward.`: the older key is ignored.
# verl does not tell a reward whether max_response_length cut a completion off: one that has marked an answer is paid for it.
# verl refuses to start without a micro-batch: here one of at most a prompt's and a response's tokens on each GPU.
python -m verl.trainer.main_ppo \
    algorithm.adv_estimator=grpo algorithm.norm_adv_by_std_in_grpo=False algorithm.use_kl_in_reward=False \
    data.train_files="$here/{train}" data.val_files="$here/{validation}" data.shuffle=False \
    data.train_batch_size=32 data.max_prompt_length=2048 data.max_response_length=16384 \
    data.filter_overlong_prompts=True \
    actor_rollout_ref.model.path="$model" \
    actor_rollout_ref.actor.optim.lr=1e-6 actor_rollout_ref.actor.optim.weight_decay=0.01 \
    actor_rollout_ref.actor.grad_clip=0.3 actor_rollout_ref.actor.ppo_mini_batch_size=32 \
    actor_rollout_ref.actor.use_dynamic_bsz=True actor_rollout_ref.actor.ppo_max_token_len_per_gpu=18432 \
    actor_rollout_ref.actor.use_kl_loss=False actor_rollout_ref.actor.entropy_coeff=1e-4 \
    actor_rollout_ref.actor.loss_agg_mode=seq-mean-token-sum \
    actor_rollout_ref.actor.clip_ratio_low=1.0 actor_rollout_ref.actor.clip_ratio_high=4.0 \
    actor_rollout_ref.rollout.name=vllm actor_rollout_ref.rollout.n=8 actor_rollout_ref.rollout.temperature=0.8 \
    reward.custom_reward_function.path="$here/{reward}" reward.custom_reward_function.name=compute_score \
    "$@"

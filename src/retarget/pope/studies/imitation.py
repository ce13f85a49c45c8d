"""Supervised training on solutions before RL: the usual way to use an oracle, without privileged information."""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from retarget.files import replace_folder
from retarget.pope.studies.testbed import IGNORED, load_base


def imitate(
    model: Path, pairs: Sequence[tuple[str, str]], steps: int, lr: float, batch: int, seed: int, output: Path,
    progress: Callable[[int, int], None],
) -> Path:  # fmt: skip
    """Train a generated base model on (prompt, completion) pairs, with cross-entropy on the completions.

    Args:
        model: directory of the base model.
        pairs: the texts; the end token after each completion is learnt too.
        steps: number of steps.
        lr: learning rate of AdamW, constant.
        batch: pairs per step, drawn without replacement until all were drawn.
        seed: seed of the order.
        output: directory for the model, written completely or not at all. If it exists, nothing is trained.
        progress: called with (finished steps, all steps).

    Returns:
        ``output``.
    """
    if output.exists():
        return output
    network, tokenizer = load_base(model)
    words = tokenizer.get_vocab()
    encoded = [([words[w] for w in prompt.split()], [words[w] for w in target.split()]) for prompt, target in pairs]
    random = torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(network.parameters(), lr=lr, weight_decay=0.01)
    network.train()
    queue: list[int] = []
    for step in range(steps):
        while len(queue) < batch:
            queue += torch.randperm(len(encoded), generator=random).tolist()
        rows, queue = [encoded[at] for at in queue[:batch]], queue[batch:]
        length = max(len(prompt) + len(target) for prompt, target in rows) + 2
        inputs = torch.zeros(batch, length, dtype=torch.long)
        labels = torch.full((batch, length), IGNORED)
        for row, (prompt, target) in enumerate(rows):
            ids = torch.tensor([1, *prompt, *target, 2])
            inputs[row, : len(ids)] = ids
            labels[row, len(prompt) + 1 : len(ids)] = ids[len(prompt) + 1 :]
        loss = network(input_ids=inputs, attention_mask=(inputs != 0).long(), labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        progress(step + 1, steps)

    def save(folder: Path) -> None:
        network.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    replace_folder(output, save)
    return output

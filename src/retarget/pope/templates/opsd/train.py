"""Privileged self-distillation with TRL 1.16 on `{train}`: the same model with the privileged context is the teacher.

    python THIS_FILE sdft --model_name_or_path MODEL --output_dir DIR ...
    python THIS_FILE sdpo --model_name_or_path MODEL --output_dir DIR ...

SDFT trains on the model's own completions of the plain prompt, without a reward. SDPO rewards them with the grader; its
teacher sees a correct completion of the group, if there is one, and the privileged context as feedback. All options of
TRL's SDFTConfig and SDPOConfig can be given on the command line.
"""

import sys
from pathlib import Path

from datasets import load_dataset

from retarget.pope.grading import Grader, reward_function

HERE = Path(__file__).parent


def main(method, *words):
    from trl import ModelConfig, TrlParser

    if method == "sdft":
        from trl.experimental.sdft import SDFTConfig as Config
        from trl.experimental.sdft import SDFTTrainer as Trainer

        rewards = {}
    elif method == "sdpo":
        from trl.experimental.sdpo import SDPOConfig as Config
        from trl.experimental.sdpo import SDPOTrainer as Trainer

        words = ["--include_environment_feedback", "true", *words]  # otherwise SDPO ignores the column
        rewards = {"reward_funcs": [reward_function(Grader("{grader}"))]}
    else:
        sys.exit(f"the first argument must be sdft or sdpo, not {method}")
    config, model = TrlParser((Config, ModelConfig)).parse_args_and_config(list(words))
    kind = {".parquet": "parquet"}.get(Path("{train}").suffix, "json")
    rows = load_dataset(kind, data_files=str(HERE / "{train}"), split="train")
    trainer = Trainer(model=model.model_name_or_path, args=config, train_dataset=rows, **rewards)
    trainer.train()
    trainer.save_model(config.output_dir)
    return trainer


if __name__ == "__main__":
    if len(sys.argv) < 2:
        sys.exit(__doc__)
    main(*sys.argv[1:])

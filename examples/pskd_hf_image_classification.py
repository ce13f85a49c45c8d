"""PS-KD in the Hugging Face Trainer: a small ViT on scikit-learn's digits. ``Trainer`` becomes ``PSKDTrainer``."""

import numpy as np
import torch
from sklearn.datasets import load_digits
from transformers import TrainingArguments, ViTConfig, ViTForImageClassification, set_seed

from retarget.pskd import PSKDTrainer


def main(epochs: int = 12, folder: str = "vit-digits") -> float:
    set_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    samples = [
        {"pixel_values": image, "labels": int(label)} for image, label in zip(images, digits.target, strict=True)
    ]
    model = ViTForImageClassification(
        ViTConfig(
            image_size=8, patch_size=2, num_channels=1, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
            num_attention_heads=4, num_labels=10,
        )
    )  # fmt: skip
    trainer = PSKDTrainer(
        model=model,
        args=TrainingArguments(
            output_dir=folder, num_train_epochs=epochs, per_device_train_batch_size=32, learning_rate=3e-3,
            save_strategy="no", report_to=[], disable_tqdm=True, use_cpu=True,
        ),
        train_dataset=samples[:1400],
        eval_dataset=samples[1400:],
        compute_metrics=lambda p: {"accuracy": float(np.mean(p.predictions.argmax(1) == p.label_ids))},
        alpha_T=0.8,
    )  # fmt: skip
    trainer.train()
    accuracy = trainer.evaluate()["eval_accuracy"]
    print(f"test accuracy {accuracy:.3f}")
    return accuracy


if __name__ == "__main__":
    main()

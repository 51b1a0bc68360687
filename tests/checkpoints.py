"""Folders that transformers' save_pretrained writes. Not a test itself."""

import torch

SIDE, CLASSES = 32, 3
NAMES = {0: "tench, Tinca tinca", 1: "goldfish", 2: "great white shark"}
TINY = {
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "image_size": SIDE,
    "patch_size": 8,
}
SWIN = {
    "image_size": SIDE,
    "patch_size": 4,
    "embed_dim": 8,
    "depths": [1, 1],
    "num_heads": [1, 2],
    "window_size": 4,
}
# By the type in the configuration: options of a tiny model.
KINDS = {
    "vit": TINY,
    "deit": TINY,
    "vit_msn": TINY,
    "dinov2": TINY,
    "dinov2_with_registers": {**TINY, "num_register_tokens": 4},
    "swin": SWIN,
    "swinv2": SWIN,
    "resnet": {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1]},
}


def save_checkpoint(folder, kind="vit"):
    """Writes a tiny classifier of random weights, and its image processor."""
    import transformers

    config = transformers.AutoConfig.for_model(kind, **KINDS[kind], id2label=NAMES)
    if kind == "deit":  # of which there are two
        config.architectures = ["DeiTForImageClassification"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = transformers.AutoModelForImageClassification.from_config(config)
    model.eval().save_pretrained(folder)
    processor = transformers.ViTImageProcessor(
        size={"height": SIDE, "width": SIDE},
        image_mean=[0.5, 0.4, 0.3],
        image_std=[0.2, 0.25, 0.5],
    )
    processor.save_pretrained(folder)
    return model, processor
